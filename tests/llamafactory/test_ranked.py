"""Ranked rows train as they are, and as the pairs do that they stand for; their reference runs once per answer."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from uni_dpo.data.convert import convert
from uni_dpo.demo.digits import QUESTION, Digit, answer
from uni_dpo.errors import UniDPOError

METRICS = ("loss", "grad_norm", "rewards/chosen", "rewards/margins", "rewards/accuracies", "uni_dpo/score_margin")
RANKED = {"prompt": "instruction", "images": "images", "answers": "answers", "scores": "scores"}


def ranked_rows(digits: list[Digit]) -> list[dict[str, Any]]:
    """Questions with two to five answers, of which some are equal or tied, over one image, two or none."""
    rows = []
    for at, digit in enumerate(digits):
        count, images = 2 + at % 4, (1, 0, 2)[at % 3]
        texts = [answer((digit.label + step) % 10) + " yes" * (step % 3) for step in range(count)]
        scores = [1.0 + (3 * step + at) % 5 for step in range(count)]
        if at == 2:
            texts[3], scores[2] = texts[0], scores[1]
        rows.append(
            {
                "instruction": "<image>" * images + QUESTION,
                "answers": texts,
                "scores": scores,
                "images": [str(digit.image)] * images,
            }
        )
    return rows


@pytest.fixture
def both(pair_data: Any, digits: dict[str, list[Digit]], tmp_path: Path) -> Any:
    """`both(pairing)` registers `ranked` and its pairs, written out by `uni-dpo data convert`, as `pairs`."""

    def add(pairing: str = "all", rows: list[dict[str, Any]] | None = None) -> list[dict[str, Any]]:
        rows = rows or ranked_rows(digits["preference"][:6])
        pair_data.add("ranked", rows, columns=RANKED)
        written = tmp_path / "pairs.jsonl"
        convert(
            pair_data.folder / "ranked.json",
            written,
            from_format="llamafactory-ranked",
            pairing=pairing,  # type: ignore[arg-type]
        )
        pairs = [{"images": [], **json.loads(line)} for line in written.read_text().splitlines()]
        pair_data.add("pairs", pairs)
        return pairs

    return add


def trajectory(log: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([[line[name] for name in METRICS] for line in log if "grad_norm" in line], dtype=torch.float64)


def assert_equal_runs(train: Any, tolerance: float = 1e-5, **settings: Any) -> torch.Tensor:
    ranked, pairs = (trajectory(train(dataset=name, **settings)) for name in ("ranked", "pairs"))
    assert len(ranked) == len(pairs)
    torch.testing.assert_close(ranked, pairs, rtol=tolerance, atol=tolerance / 10)
    return ranked


@pytest.mark.parametrize("pairing", ["all", "neighbours", "ends"])
def test_ranked_rows_train_as_the_pairs_that_convert_makes_of_them(train: Any, both: Any, pairing: str) -> None:
    rows = both(pairing)
    ranked = assert_equal_runs(train, uni_dpo_pairs=pairing, num_train_epochs=2)
    assert len(ranked) == 2 * -(-len(rows) // 4)


@pytest.mark.parametrize(
    "settings",
    [
        {"group_by_question": True},
        {"pair_forward": "ordinary"},
        {"cutoff_len": 36, "disable_shuffling": True},
        {"precompute_ref_log_probs": True, "uni_dpo_nll_lambda": 0.0},
        {"gradient_accumulation_steps": 2, "finetuning_type": "lora", "lora_target": "q_proj"},
        {"eval_dataset": "mixed", "eval_strategy": "epoch"},
    ],
    ids=lambda settings: " ".join(f"{name}={value}" for name, value in settings.items()),
)
def test_they_do_so_in_every_way_of_training(
    train: Any, both: Any, digits: Any, tmp_path: Path, settings: dict[str, Any]
) -> None:
    rows = ranked_rows(digits["preference"][:6])
    if "cutoff_len" in settings:
        rows = [row for row in rows if not row["images"]] * 2
    both(rows=rows)
    assert_equal_runs(train, ref_cache_dir=str(tmp_path / "cache"), **settings)


def test_a_gap_leaves_close_pairs_out(train: Any, both: Any, pair_data: Any) -> None:
    pairs = [row for row in both() if row["score_chosen"] - row["score_rejected"] >= 2]
    pair_data.add("pairs", pairs)
    assert len(assert_equal_runs(train, uni_dpo_min_gap=2.0)) == -(-len(pairs) // 4)


def test_ranked_rows_and_pairs_train_side_by_side(train: Any, both: Any) -> None:
    both()
    for first, second in (("ranked,mixed", "pairs,mixed"), ("mixed,ranked", "mixed,pairs")):
        ranked, pairs = (trajectory(train(dataset=names)) for names in (first, second))
        torch.testing.assert_close(ranked, pairs, rtol=1e-5, atol=1e-6)


def test_a_streamed_file_gives_the_same_pairs(train: Any, both: Any, digits: dict[str, list[Digit]]) -> None:
    both(rows=[row for row in ranked_rows(digits["preference"][:8]) if row["images"]])
    settings = {"streaming": True, "max_steps": 4, "buffer_size": 1, "uni_dpo_pairs": "neighbours"}
    streamed = trajectory(train(dataset="ranked", **settings))
    both("neighbours", rows=[row for row in ranked_rows(digits["preference"][:8]) if row["images"]])
    torch.testing.assert_close(streamed, trajectory(train(dataset="pairs", **settings)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("formatting", ["sharegpt", "openai"])
def test_messages_and_answers_with_their_own_scores(train: Any, both: Any, pair_data: Any, formatting: str) -> None:
    pairs = both()
    rows = json.loads((pair_data.folder / "ranked.json").read_text())
    role, content, user, assistant = ("from", "value", "human", "gpt")
    tags = {}
    if formatting == "openai":
        role, content, user, assistant = ("role", "content", "user", "assistant")
        tags = {"tags": {"role_tag": role, "content_tag": content, "user_tag": user, "assistant_tag": assistant}}

    def as_messages(row: dict[str, Any]) -> dict[str, Any]:
        asked = {"messages": [{role: user, content: row["instruction"]}], "images": row["images"]}
        if "chosen" in row:
            sides = {side: {role: assistant, content: row[side]} for side in ("chosen", "rejected")}
            return asked | sides | {name: row[name] for name in ("score_chosen", "score_rejected")}
        return asked | {
            "answers": [{"text": t, "score": s} for t, s in zip(row["answers"], row["scores"], strict=True)]
        }

    for name, found, roles in (("ranked", rows, ("answers",)), ("pairs", pairs, ("chosen", "rejected"))):
        columns = {role: role for role in ("messages", "images", *roles)}
        pair_data.add(name, [as_messages(row) for row in found], formatting=formatting, columns=columns, **tags)
    assert_equal_runs(train, max_steps=2)


def test_nothing_is_blown_up_on_disk(train: Any, both: Any, pair_data: Any, tmp_path: Path) -> None:
    """Of the tokenized file there is one row per question, and another choice of pairs needs no other file."""
    from datasets import load_from_disk

    pairs = both()
    tokens = str(tmp_path / "tokens")
    train(dataset="ranked", tokenized_path=tokens)
    questions = load_from_disk(tokens)["train"]
    assert len(questions) == len(json.loads((pair_data.folder / "ranked.json").read_text())) < len(pairs)
    again = trajectory(train(dataset="ranked", tokenized_path=tokens, uni_dpo_pairs="ends"))
    both("ends")
    torch.testing.assert_close(again, trajectory(train(dataset="pairs")), rtol=1e-5, atol=1e-6)


def test_cut_image_tokens_of_ranked_rows_are_named(train: Any, both: Any) -> None:
    both()
    with pytest.raises(UniDPOError, match=r"ranked\.json, row 2: cutoff_len 24 keeps 4 of 8 image tokens|cutoff_len"):
        train(dataset="ranked", cutoff_len=24)


def test_another_loss_says_how_to_make_pairs(train: Any, both: Any) -> None:
    both()
    with pytest.raises(UniDPOError, match="ranked answers train with pref_loss: uni_dpo only"):
        train(dataset="ranked", pref_loss="sigmoid")


@pytest.mark.parametrize("mode", ["shared_prefix", "ordinary"])
def test_the_reference_runs_once_per_answer(
    train: Any,
    pair_data: Any,
    digits: dict[str, list[Digit]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
) -> None:
    from uni_dpo.llamafactory.reference_records import read_records
    from uni_dpo.llamafactory.trainer import LlamaFactoryUniDPOTrainer

    sequences: list[int] = []
    forward = LlamaFactoryUniDPOTrainer.concatenated_forward

    def counting(self: Any, model: Any, batch: Any, is_ref_model: bool = False) -> Any:
        if is_ref_model:
            tokens = batch.get("response_tokens")
            sequences.append(tokens["sequences"] if tokens else len(batch["input_ids"]))
        return forward(self, model, batch, is_ref_model)

    monkeypatch.setattr(LlamaFactoryUniDPOTrainer, "concatenated_forward", counting)
    rows = [
        {
            "instruction": "<image>" + QUESTION,
            "answers": [answer((digit.label + step) % 10) for step in range(4)],
            "scores": [4, 3, 2, 1],
            "images": [str(digit.image)],
        }
        for digit in digits["preference"][:3]
    ]
    pair_data.add("ranked", rows, columns=RANKED)
    settings = {"dataset": "ranked", "precompute_ref_log_probs": True, "ref_cache_dir": str(tmp_path / "cache")}
    settings |= {"pair_forward": mode, "uni_dpo_nll_lambda": 0.0}
    carried = trajectory(train(**settings | {"precompute_ref_log_probs": False}))
    sequences.clear()
    log = trajectory(train(**settings))
    assert sum(sequences) == 12
    (folder,) = (tmp_path / "cache").iterdir()
    assert len(read_records(folder)[0]) == 12
    for run in (log, carried):  # nothing has moved yet: rounding decides the accuracy of the first step
        run[0, METRICS.index("rewards/accuracies")] = 0.0
    torch.testing.assert_close(log, carried, rtol=1e-4, atol=1e-5)
    train(**settings, uni_dpo_pairs="ends")
    assert sum(sequences) == 12
