"""Pairs with a video, a file or frames given one by one, train in one sequence per question as they do in two."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl
from uni_dpo.engine import run_engine


@pytest.mark.parametrize("kind", ["frames", "files"])
def test_videos_train_alike(
    kind: str,
    pair_data: Any,
    train: Callable[..., list[dict[str, Any]]],
    write_video: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A file's path starts beside the data, as an image's does."""
    from uni_dpo.llamafactory import pair_forward

    scored: list[set[str]] = []
    pair_scores = pair_forward.pair_scores

    def noting(model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        scored.append({*inputs})
        return pair_scores(model, inputs, *args, **kwargs)

    monkeypatch.setattr(pair_forward, "pair_scores", noting)
    rows = json.loads((pair_data.folder / "mixed.json").read_text())
    frames = [row["images"][0] for row in rows if row["images"]]
    rows = [
        row | {"instruction": "<video>Which digit?", "videos": [frames[at % 5 : at % 5 + 2 + at % 3]], "images": []}
        for at, row in enumerate(rows)
    ]
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected", "videos": "videos"}
    columns |= {"score_chosen": "score_chosen", "score_rejected": "score_rejected"}
    rows = [{name: row[name] for name in row if name != "images"} for row in rows]
    apart = pair_data.folder / "apart"
    if kind == "files":
        apart.mkdir()
        for length in (4, 9):
            write_video(apart / f"film{length}.mp4", length)
        rows = [row | {"videos": f"film{(4, 9)[at % 2]}.mp4"} for at, row in enumerate(rows)]
        (apart / "filmed.json").write_text(json.dumps(rows))
        pair_data.add("filmed", [], columns=columns, file_name="apart/filmed.json")
    else:
        pair_data.add("filmed", rows, columns=columns)
    settings = {"dataset": "filmed", "max_steps": 2, "learning_rate": 1e-4}
    shared, ordinary = (train(**settings, pair_forward=forward) for forward in ("shared_prefix", "ordinary"))
    for mine, theirs in zip(shared, ordinary, strict=True):
        for name in theirs.keys() & {"loss", "grad_norm", "rewards/margins", "logps/chosen"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    assert len(scored) == 4, "two steps of policy and reference, in one of the two runs"
    assert all(names >= {"segments", "pixel_values_videos", "video_grid_thw"} for names in scored)


def test_what_is_sampled_about_videos_trains(
    tiny_qwen2_vl: Path, train: Callable[..., list[dict[str, Any]]], write_video: Callable[..., Path], tmp_path: Path
) -> None:
    """The engine samples from the model, scores by its log-probabilities against another's, and its pairs train."""
    for length in (4, 9):
        write_video(tmp_path / f"film{length}.mp4", length)
    rows = [{"question": f"Which digit?{at}", "video": f"film{(4, 9)[at % 2]}.mp4"} for at in range(4)]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    model = {"model": str(tiny_qwen2_vl)}
    spec = {
        "pipeline": "dpo_reward",
        "input": {"path": str(tmp_path / "questions.json")},
        "models": {"sampler": model, "aligned": model},
        "sample": {"n": 6, "max_tokens": 8},
        "pairs": {"allow_cut_answers": True, "max_mean_word_difference": 10},
    }
    spec["models"]["reference"] = {"model": str(write_tiny_qwen2_vl(tmp_path / "other", seed=1))}
    result = run_engine(spec, tmp_path / "work")
    assert result.report["pair"]["questions"] == 4
    dataset = {"dataset_dir": str(tmp_path / "work" / "dataset"), "dataset": "uni_dpo_engine"}
    losses = [line["loss"] for line in train(**dataset, max_steps=2) if "loss" in line]
    assert len(losses) == 2
    assert all(math.isfinite(loss) and loss > 0 for loss in losses)
