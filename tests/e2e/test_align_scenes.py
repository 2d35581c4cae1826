"""`uni-dpo align` on drawn pictures, from random weights to the page, with every figure counted again from the files.

The stages are the program's own commands, in this process: they import once.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.align import run as running
from uni_dpo.align.config import AlignConfig
from uni_dpo.cli.app import app
from uni_dpo.demo import scenes
from uni_dpo.demo.scenes import COLOURS, COUNTS, PLACES, SHAPES
from uni_dpo.demo.task import write_task

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SPLITS = {"train": 64, "preference": 12, "validation": 8, "held_out": 10}
SMALL = (
    "warm_up.max_steps=40", "engine.sample.n=4", "engine.batch_size=12", "train.num_train_epochs=1", "baselines={}",
    "go_on=always", "warm_up.preprocessing_num_workers=1", "train.preprocessing_num_workers=1",
)  # fmt: skip


def f1(said: str, true: str) -> float:
    """F1 of the claims, each looked for by itself: how many shapes, and for each place its colours and its shapes."""

    def facts(text: str) -> set[tuple[str, ...]]:
        plain = "".join(letter if letter.isalpha() else " " for letter in f" {text.lower()} ")
        found: set[tuple[str, ...]] = {(count,) for count in COUNTS if f" {count} " in plain}
        for colour, shape, place in product(COLOURS, SHAPES, PLACES):
            if f"{colour} {shape} {place} " in plain:
                found |= {(colour, place), (shape, place)}
        return found

    one, other = facts(said), facts(true)
    return 2 * len(one & other) / (len(one) + len(other)) if one else 0.0


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_scenes_from_random_weights_to_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_here(words: tuple[str, ...], template: Any, **named: Any) -> int:
        app(list(words), standalone_mode=False)
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "SPLITS", SPLITS)
    monkeypatch.setattr(running, "run_command", run_here)
    folder = write_task("scenes", "outputs/scenes")
    config = AlignConfig.load(ROOT / "examples/align/scenes.yaml", SMALL)
    running.run_align(config)

    work, true = config.work, {row["id"]: row["answer"] for row in rows(folder / "questions.jsonl")}
    summary = json.loads((work / "summary.json").read_text())
    pairs = json.loads((work / "round-1/engine/dataset/pairs.json").read_text())
    assert summary["rounds"][0]["pairs"] == len(pairs) > 4
    for pair in pairs:
        grades = [f1(pair[side], true[pair["question_id"]]) for side in ("chosen", "rejected")]
        assert [pair["score_chosen"], pair["score_rejected"]] == pytest.approx([5 * grade for grade in grades])
        assert grades[0] >= grades[1] + 0.1

    def mean(path: Path) -> Any:
        graded = [100 * f1(row["prediction"], row["answer"]) for row in rows(path)]
        return pytest.approx(sum(graded) / len(graded))

    before, after = (mean(work / part / "test/model.jsonl") for part in ("base", "round-1"))
    told = json.loads((work / "round-1/choice.json").read_text())
    assert [told["before"], told["means"]["final"]] == [
        mean(work / "base/validation/model.jsonl"), mean(work / "round-1/validation/final.jsonl"),
    ]  # fmt: skip
    first, *later = summary["test"]
    assert (first["model"], first["mean"]) == ("before", before)
    assert first["mean"] > 10  # the warm-up has learnt to describe
    assert [(row["mean"], row["questions"]) for row in later] == [(after, SPLITS["held_out"])]
    page = (work / "report.html").read_text()
    assert all(pair["chosen"] in page for pair in pairs if pair["chosen"].isascii())
