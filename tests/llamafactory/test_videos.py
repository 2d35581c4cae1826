"""Pairs with a video, of frames given one by one, train in one sequence per question as they do in two."""

import json
from collections.abc import Callable
from typing import Any

import pytest


def test_videos_train_alike(
    pair_data: Any, train: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
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
    pair_data.add("filmed", [{name: row[name] for name in row if name != "images"} for row in rows], columns=columns)
    settings = {"dataset": "filmed", "max_steps": 2, "learning_rate": 1e-4}
    shared, ordinary = (train(**settings, pair_forward=forward) for forward in ("shared_prefix", "ordinary"))
    for mine, theirs in zip(shared, ordinary, strict=True):
        for name in theirs.keys() & {"loss", "grad_norm", "rewards/margins", "logps/chosen"}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
    assert len(scored) == 4, "two steps of policy and reference, in one of the two runs"
    assert all(names >= {"segments", "pixel_values_videos", "video_grid_thw"} for names in scored)
