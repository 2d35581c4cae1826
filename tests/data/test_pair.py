from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from uni_dpo.data.dataset_info import PAIR_COLUMNS, Columns, DatasetEntry, pair_entry
from uni_dpo.data.faults import Fault
from uni_dpo.data.formats.llamafactory import OPENAI
from uni_dpo.data.pair import PreferencePair, read_pair, read_score

ROW = {"instruction": "q", "chosen": "a", "rejected": "b", "score_chosen": 2, "score_rejected": 1}


def read(row, entry=None, **options) -> tuple[PreferencePair | None, list[tuple[str, str]]]:
    faults: list[Fault] = []
    pair = read_pair(row, entry or pair_entry(Path("pairs.json")), faults, **options)
    return pair, [(fault.kind, fault.field) for fault in faults]


def test_prompt_and_query_are_joined_as_llamafactory_does() -> None:
    entry = DatasetEntry("d", None, ranking=True, columns=Columns(chosen="chosen", rejected="rejected"))
    pair, _ = read(ROW | {"instruction": "Look.", "input": "What?"}, entry)
    assert pair.instruction == "Look.\nWhat?"


def test_history_system_and_id() -> None:
    pair, faults = read(ROW | {"history": [["x", "y"], ("z", "w")], "system": "s", "id": 7, "images": "a.png"})
    assert (pair.history, pair.system, pair.id, pair.images) == ((("x", "y"), ("z", "w")), "s", 7, ("a.png",))
    assert faults == []


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"history": "x, y"}, ("history_type", "history")),
        ({"history": [["x"]]}, ("history_shape", "history[0]")),
        ({"history": [["x", 3]]}, ("text_type", "history[0]")),
        ({"system": 5}, ("text_type", "system")),
        ({"instruction": None}, ("text_null", "instruction")),
        ({"images": {"path": None, "bytes": None}}, ("image_type", "images[0]")),
    ],
)
def test_wrong_kinds(changes, fault) -> None:
    assert read(ROW | changes)[1] == [fault]


@pytest.mark.parametrize(("value", "score"), [(3, 3.0), (2.5, 2.5), (Decimal("1.25"), 1.25), (-7, -7.0)])
def test_numbers_are_scores(value, score) -> None:
    faults: list[Fault] = []
    assert read_score({"s": value}, "s", faults) == score
    assert not faults


def test_scores_are_only_asked_for_where_they_are_required() -> None:
    row = ROW | {"score_chosen": "x", "score_rejected": None}
    assert read(row)[1] == [("score_text", "score_chosen"), ("score_null", "score_rejected")]
    pair, faults = read(row, scores_required=False)
    assert (pair.score_chosen, faults) == (None, [])


def test_an_unmapped_column_is_named_by_its_role() -> None:
    entry = replace(pair_entry("p.json"), columns=replace(PAIR_COLUMNS, chosen=None))
    assert read(ROW, entry)[1] == [("column_unmapped", "chosen / rejected")]


def test_tool_turns_of_the_openai_layout() -> None:
    row = {
        "messages": [
            {"role": "user", "content": "What time is it?"},
            {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "clock"}}]},
            {"role": "tool", "content": "12:00"},
            {"role": "tool", "content": "UTC"},
        ],
        "chosen": {"role": "assistant", "content": "Noon."},
        "rejected": {"role": "assistant", "content": "Midnight."},
    }
    pair, faults = read(row, OPENAI, scores_required=False)
    assert faults == []
    assert pair.instruction == "12:00\nUTC"
