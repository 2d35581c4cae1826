"""Acting on pairs that were marked on a page."""

import json
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.data.marked import apply_marks
from uni_dpo.errors import UniDPOError

PAIR = {"instruction": "q", "chosen": "good", "rejected": "bad"}


def apply(folder: Path, row: dict[str, Any], action: str, name: str = "p.jsonl", output: str = "o.jsonl") -> str:
    (folder / name).write_text(json.dumps(row) + "\n")
    (folder / "m.jsonl").write_text(json.dumps({"pair": f"{name}, row 0", "action": action}))
    apply_marks(folder / name, folder / "m.jsonl", folder / output)
    return (folder / output).read_text()


def test_scores_of_any_name_are_swapped_with_their_answers(tmp_path: Path) -> None:
    row = PAIR | {"chosen_rating": 5, "rejected_rating": 1, "raw_score_chosen": 9, "raw_score_rejected": 2}
    assert json.loads(apply(tmp_path, row, "swap")) == {
        "instruction": "q",
        "chosen": "bad",
        "rejected": "good",
        "chosen_rating": 1,
        "rejected_rating": 5,
        "raw_score_chosen": 2,
        "raw_score_rejected": 9,
    }


@pytest.mark.parametrize("column", ["images", "image"])
def test_an_answer_keeps_the_images_that_it_saw(tmp_path: Path, column: str) -> None:
    row = PAIR | {column: ["a.png"], "rejected_images": ["b.png"]}
    swapped = json.loads(apply(tmp_path, row, "swap"))
    assert (swapped[column], swapped["rejected_images"]) == (["b.png"], ["a.png"])
    both_see_the_same = PAIR | {column: ["a.png"], "rejected_images": []}
    assert json.loads(apply(tmp_path, both_see_the_same, "swap"))[column] == ["a.png"]


def test_a_row_with_two_marks_is_named(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text(json.dumps(PAIR))
    marks = [{"pair": "p.jsonl, row 0", "action": action} for action in ("drop", "drop", "swap")]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, marks)))
    with pytest.raises(UniDPOError, match=r"line 3, pair: row 0 has the mark drop too"):
        apply_marks(tmp_path / "p.jsonl", tmp_path / "m.jsonl", tmp_path / "o.jsonl")


@pytest.mark.parametrize(("action", "output"), [("swap", "o.jsonl"), ("rejudge", "o.rejudge.jsonl")])
def test_paths_lead_from_the_output_to_the_same_files(tmp_path: Path, action: str, output: str) -> None:
    (tmp_path / "a.png").touch()
    apply(tmp_path, PAIR | {"images": ["a.png", "none.png"]}, action, output="new/o.jsonl")
    assert json.loads((tmp_path / "new" / output).read_text())["images"] == ["../a.png", "none.png"]


def test_answers_under_other_names_are_not_left_as_they_are(tmp_path: Path) -> None:
    row = {"instruction": "q", "good": "a", "bad": "b", "score_chosen": 5, "score_rejected": 1}
    with pytest.raises(UniDPOError, match=r"p.jsonl, row 0: has no columns `chosen` and `rejected`"):
        apply(tmp_path, row, "swap")


def test_the_rows_to_judge_again_never_replace_what_is_read(tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match="is what is read"):
        apply(tmp_path, PAIR, "rejudge", "p.rejudge.jsonl", "p.jsonl")
    assert json.loads((tmp_path / "p.rejudge.jsonl").read_text()) == PAIR
