"""Which pairs ranked answers make, worked out by hand, and rows that are at fault."""

import json
import math
from pathlib import Path

import pytest

from uni_dpo.data.checks.check import check_dataset
from uni_dpo.data.checks.preflight import preflight
from uni_dpo.data.convert import convert
from uni_dpo.data.dataset_info import read_entry
from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.ranking import PairChoice
from uni_dpo.data.register import register_file
from uni_dpo.data.tables.reading import iter_rows
from uni_dpo.engine.pairing import PairOptions, choose_pairs
from uni_dpo.engine.records import ScoredAnswer

SCORES, SAME = [3.0, 5.0, 1.0, 4.5, 3.0], [0, 1, 2, 1, 4]
"""Answers 1 and 3 are the same text; 0 and 4 have the same score."""


@pytest.mark.parametrize(
    ("choice", "pairs"),
    [
        (PairChoice(), [(1, 0), (1, 4), (1, 2), (3, 0), (3, 4), (3, 2), (0, 2), (4, 2)]),
        (PairChoice("neighbours"), [(3, 0), (4, 2)]),
        (PairChoice("ends"), [(1, 2)]),
        (PairChoice("all", 2.0), [(1, 0), (1, 4), (1, 2), (3, 2), (0, 2), (4, 2)]),
        (PairChoice("neighbours", 1.75), [(4, 2)]),
        (PairChoice("ends", 4.5), []),
    ],
)
def test_the_pairs_that_count(choice: PairChoice, pairs: list[tuple[int, int]]) -> None:
    assert choice.pairs(SCORES, SAME) == pairs


@pytest.mark.parametrize(
    ("scores", "gap", "counts"),
    [((4.7, 4.4), 0.3, True), ((0.7, 0.4), 0.3, True), ((4.7, 4.4), 0.301, False), ((4.4, 4.4), 0.0, False)],
)
def test_a_gap_is_that_of_the_decimals(scores: tuple[float, float], gap: float, counts: bool) -> None:
    """In binary 4.7 − 4.4 and 0.7 − 0.4 are less than 0.3."""
    assert bool(PairChoice("all", gap).pairs(scores, "ab")) == counts
    answers = [ScoredAnswer(text, score) for text, score in zip("ab", scores, strict=True)]
    for options in (PairOptions(gap, 9), PairOptions(gap, 9, "best_worst")):
        assert bool(choose_pairs("q", answers, options, seed=0)) == counts


ROW = {"instruction": "Which?", "answers": ["one", "two", "three"], "scores": [1, 2.5, 4]}
ANSWERS = (("one", 1), ("two", 2.5), ("three", 4))
FAULTS = {
    "answers_type": {"answers": "one"},
    "column_missing": {"answers": ...},
    "scores_count": {"scores": [1, 2]},
    "score_null": {"scores": [1, None, 3]},
    "score_nan": {"scores": [1, math.nan, 3]},
    "score_text": {"scores": [1, "2", 3]},
    "answer_empty": {"answers": ["one", " ", "three"]},
    "text_type": {"answers": ["one", 2, "three"]},
    "text_null": {"answers": ["one", {"note": 1}, "three"]},
    "image_count": {"answers": ["one", "<image>", "three"]},
    "model_marker": {"answers": ["one", "<|image_pad|>", "three"]},
}


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_named_with_its_place(tmp_path: Path, kind: str) -> None:
    broken = {name: value for name, value in (ROW | FAULTS[kind]).items() if value is not ...}
    file = write(tmp_path / "ranked.jsonl", [ROW, broken, ROW])
    register_file("ranked", file, tmp_path)
    report = check_dataset("ranked", dataset_dir=tmp_path)
    assert {(fault.kind, fault.row, fault.line) for fault in report.faults} == {(kind, 1, 2)}
    with pytest.raises(PreferenceDataError, match=r"ranked\.jsonl, row 1 \(line 2\).*"):
        preflight(["ranked"], tmp_path)


def test_rows_that_make_no_pair_are_counted_and_alone_are_a_fault(tmp_path: Path) -> None:
    tied = ROW | {"scores": [2, 2, 2]}
    lone = {"instruction": "Which?", "answers": ["one"], "scores": [1]}
    register_file("some", write(tmp_path / "some.jsonl", [ROW, tied, lone]), tmp_path)
    report = check_dataset("some", dataset_dir=tmp_path)
    assert (report.faultless, report.usable, report.pairless, report.audit and report.audit.pairs) == (True, 3, 2, 3)
    assert "no two answers make a pair in 2 of 3 rows" in report.warnings
    register_file("none", write(tmp_path / "none.jsonl", [tied, tied]), tmp_path)
    assert check_dataset("none", dataset_dir=tmp_path).fault_counts == {"no_pairs": 1}
    gap = PairChoice(min_gap=3.5)
    assert check_dataset("some", dataset_dir=tmp_path, choice=gap).fault_counts == {"no_pairs": 1}
    with pytest.raises(PreferenceDataError, match="no row makes a pair"):
        preflight(["some"], tmp_path, choice=gap)


@pytest.mark.parametrize("shape", ["texts", "objects", "sharegpt", "openai"])
def test_registering_finds_the_columns_of_every_shape(tmp_path: Path, shape: str) -> None:
    row: dict = dict(ROW)
    if shape != "texts":
        row = {"prompt": "Which?", "responses": [{"response": t, "score": s} for t, s in ANSWERS]}
    if shape == "sharegpt":
        row = {**row, "conversations": [{"from": "human", "value": row.pop("prompt")}]}
    elif shape == "openai":
        row = {**row, "messages": [{"role": "user", "content": row.pop("prompt")}]}
    register_file("ranked", write(tmp_path / "ranked.jsonl", [row]), tmp_path)
    entry = read_entry("ranked", tmp_path)
    assert entry.ranked
    assert entry.formatting == (shape if shape in ("sharegpt", "openai") else "alpaca")
    report = check_dataset("ranked", dataset_dir=tmp_path)
    assert (report.faultless, report.audit and report.audit.pairs) == (True, 3)


def test_pairs_are_made_of_it_on_request(tmp_path: Path) -> None:
    file = write(tmp_path / "ranked.jsonl", [ROW])
    convert(file, tmp_path / "pairs.jsonl", from_format="auto", pairing="neighbours")
    assert [tuple(row.values()) for row in iter_rows(tmp_path / "pairs.jsonl")] == [
        ("Which?", "three", "two", 4.0, 2.5),
        ("Which?", "two", "one", 2.5, 1.0),
    ]


def test_pairs_are_made_of_answers_to_a_conversation(tmp_path: Path) -> None:
    turn = {"role": "user", "content": "Which?", "name": "Ada"}
    file = write(tmp_path / "ranked.jsonl", [{"messages": [turn], "answers": ["a", "b"], "scores": [1, 2]}])
    result = convert(file, tmp_path / "pairs.jsonl", from_format="auto")
    assert [tuple(row.values()) for row in iter_rows(tmp_path / "pairs.jsonl")] == [("Which?", "b", "a", 2.0, 1.0)]
    assert +result.losses == {"name of messages": 1}


def test_answers_that_are_references_are_no_ranked_answers(tmp_path: Path) -> None:
    with pytest.raises(PreferenceDataError, match="nor `answers` with their `scores`"):
        register_file("vqa", write(tmp_path / "vqa.jsonl", [{"question": "Which?", "answers": ["one"] * 10}]), tmp_path)
