"""A user's table is checked row by row, and nothing in it is run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import Digit
from uni_dpo.errors import UniDPOError
from uni_dpo.vlmeval.cells import read_frame
from uni_dpo.vlmeval.table import listed, read_benchmark_table, read_own_table

BASE64 = "iVBORw0KGgo" * 8
ROW = {"index": "1", "question": "Which?", "answer": "A", "A": "left", "B": "right", "image": BASE64}


@pytest.fixture
def table(tmp_path: Path, tsv: Callable) -> Callable[..., Path]:
    return lambda *rows: tsv(tmp_path / "t.tsv", rows)


def test_the_type_is_found(table: Callable) -> None:
    assert read_own_table(table(ROW), None, None).kind == "MCQ"
    asked = {"question": "Is it?", "image": BASE64}
    yes_no = read_own_table(table({**asked, "answer": "yes"}, {**asked, "answer": " No "}), None, None)
    assert yes_no.kind == "Y/N"
    assert list(yes_no.frame["answer"]) == ["Yes", "No"]
    assert list(yes_no.frame["index"]) == ["0", "1"]
    assert read_own_table(table({**asked, "answer": "seven"}, {**asked, "answer": "no"}), None, None).kind == "VQA"


def test_cells_are_the_text_they_are(table: Callable) -> None:
    read = read_own_table(table({**ROW, "answer": "None"}, {**ROW, "index": "2", "answer": "007"}), "VQA", None)
    assert list(read.frame["answer"]) == ["None", "007"]


@pytest.mark.parametrize(
    ("kind", "row", "fault"),
    [
        ("MCQ", {"answer": "C"}, "answer is 'C'; it must be the letter of an option, one of A, B"),
        ("MCQ", {"answer": "b", "A": "b", "B": "a"}, "answer is 'b'; it must be the letter of an option"),
        ("MCQ", {"answer": "c"}, "answer is 'c'; it must be the letter of an option, one of A, B"),
        ("MCQ", {"answer": ""}, "no answer"),
        ("MCQ", {"question": " "}, "no question"),
        ("MCQ", {"B": "None"}, "option B is 'None'"),
        ("MCQ", {"image": ""}, "no image"),
        ("MCQ", {"image": "7"}, "neither base64 nor the index of a row with an image"),
        ("MCQ", {"image": "https://example.org/" + "x" * 80}, "write its bytes in base64, or the path of a file"),
        ("MCQ", {"image": "data:text/plain," + "x" * 80}, "write its bytes in base64, or the path of a file"),
        ("MCQ", {"image": "[" + BASE64}, "not a list of base64 texts"),
        ("MCQ", {"image_path": "../../etc/x.png"}, "leaves the image folder"),
        ("MCQ", {"image_path": "/etc/x.png"}, "leaves the image folder"),
        ("MCQ", {"image_path": "[open('x')]"}, "not a list of paths"),
        ("MCQ", {"index": "0"}, "the index stands in an earlier row too"),
        ("Y/N", {"answer": "maybe"}, "answer is 'maybe', not yes or no"),
        ("VQA", {"answer": "[print('x')]"}, "is not a list of texts"),
        ("VQA", {"answer": "[]"}, "the list of answers is empty"),
    ],
)
def test_a_bad_row_is_named_and_left_out(table: Callable, kind: str, row: dict[str, Any], fault: str) -> None:
    good = {**ROW, "index": "0", "answer": "Yes" if kind == "Y/N" else "A"}
    read = read_own_table(table(good, {**ROW, **row}), kind, None)
    index = row.get("index", "1")
    assert list(read.faults) == [index]
    assert read.faults[index].startswith(f"row 2 (index {index}): ")
    assert fault in read.faults[index]
    assert list(read.frame["index"]) == ["0"]


def test_a_row_may_share_the_image_of_another(table: Callable) -> None:
    assert not read_own_table(table(ROW, {**ROW, "index": "2", "image": "1"}), None, None).faults
    named = {**ROW, "index": "val:1"}
    assert not read_own_table(table(named, {**ROW, "index": "2", "image": "val:1"}), None, None).faults


def test_a_data_url_is_base64(table: Callable) -> None:
    cells = (
        f"data:image/png;base64,{BASE64}",
        f"DATA:image/svg+xml;charset=utf-8;base64,{BASE64}",
        f"['data:image/jpeg;base64,{BASE64}', '{BASE64}']",
    )
    for row in (ROW, {**ROW, "answer": "left"}):
        path = table(*({**row, "index": str(at), "image": cell} for at, cell in enumerate(cells)))
        for read in (read_own_table(path, "MCQ" if row is ROW else "VQA", None), read_benchmark_table(path, "VQA")):
            assert list(read.frame["image"]) == [BASE64, BASE64, f"['{BASE64}', '{BASE64}']"]
            assert not read.faults


def test_a_small_letter_is_the_option(table: Callable) -> None:
    own = read_own_table(table(ROW, {**ROW, "index": "2", "answer": " b "}), None, None)
    assert list(own.frame["answer"]) == ["A", "B"]
    rows = [
        {**ROW, "answer": "b"},
        {**ROW, "index": "2", "answer": "b", "A": "b"},
        {**ROW, "index": "3", "answer": "c"},
    ]
    assert list(read_benchmark_table(table(*rows), "MCQ").frame["answer"]) == ["B", "b", "c"]
    assert list(read_benchmark_table(table(*rows), "VQA").frame["answer"]) == ["b", "b", "c"]


@pytest.mark.parametrize("first", ["q\tx\ty", "q\tx\ty\tz"])
def test_a_tab_within_a_text_is_named(tmp_path: Path, first: str) -> None:
    """Without a word, cells behind it would stand in the wrong columns."""
    path = tmp_path / "t.tsv"
    path.write_text(f'question\tanswer\timage_path\n"two\nlines"\tx\ty\n\n{first}\nq\tx\ta\tb\n', encoding="utf-8")
    row, line = (2, 5) if first.count("\t") == 3 else (3, 6)
    message = rf"t\.tsv, row {row} \(line {line}\): has 4 cells; the header has 3; a tab within a text"
    with pytest.raises(UniDPOError, match=message):
        read_frame(path)


def test_columns_are_asked_for(table: Callable, tmp_path: Path) -> None:
    for row, message in (
        ({"question": "Which?", "image": BASE64}, "no column answer; it has index, question, image"),
        ({"question": "Which?", "answer": "x"}, r"no column image \(base64\) or image_path"),
    ):
        with pytest.raises(UniDPOError, match=message):
            read_own_table(table(row), None, None)
    with pytest.raises(UniDPOError, match="no column A, B"):
        read_own_table(table({"question": "Which?", "answer": "x", "image": BASE64}), "MCQ", None)
    with pytest.raises(UniDPOError, match="no such file"):
        read_own_table(tmp_path / "gone.tsv", None, None)
    (tmp_path / "t.tsv").write_text("question\tanswer\timage\n", encoding="utf-8")
    with pytest.raises(UniDPOError, match="has no rows"):
        read_own_table(tmp_path / "t.tsv", None, None)
    (tmp_path / "t.tsv").write_bytes(b"\xff\xfe\x00question\xff")
    with pytest.raises(UniDPOError, match=r"t\.tsv is not UTF-8 .*; save it as UTF-8"):
        read_own_table(tmp_path / "t.tsv", None, None)
    for header, message in (
        ("question\tquestion\tanswer", "two columns are named 'question'; rename one"),
        ("question,answer", "its first line has no tab, which is what divides columns: 'question,answer'"),
    ):
        (tmp_path / "t.tsv").write_text(f"{header}\na\tb\tc\n", encoding="utf-8")
        with pytest.raises(UniDPOError, match=message):
            read_own_table(tmp_path / "t.tsv", None, None)
    with pytest.raises(UniDPOError, match="no row can be used; row 1: no answer"):
        read_own_table(table({**ROW, "answer": ""}), None, None)


def test_image_paths_start_at_the_file_and_stay_in_the_root(
    table: Callable, tmp_path: Path, digits: dict[str, list[Digit]]
) -> None:
    inside = tmp_path / "pictures"
    inside.mkdir()
    (inside / "0.png").write_bytes(digits["held_out"][0].image.read_bytes())
    row = {"question": "Which?", "answer": "x", "image_path": "pictures/0.png"}
    read = read_own_table(table(row), None, None)
    assert list(read.frame["image_path"]) == [str((inside / "0.png").resolve())]
    read = read_own_table(table({**row, "image_path": "0.png"}, {**row, "image_path": "../t.tsv"}), None, inside)
    assert list(read.frame["image_path"]) == [str((inside / "0.png").resolve())]
    assert "'../t.tsv' leaves" in read.faults["1"]
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "pictures").symlink_to(inside)  # its owner's link may lead out of it, as everywhere else
    read = read_own_table(table({**row, "image_path": "pictures/0.png"}), None, linked)
    assert list(read.frame["image_path"]) == [str(linked / "pictures" / "0.png")]
    with pytest.raises(UniDPOError, match=r"image_path: no file .*1\.png"):
        read_own_table(table({**row, "image_path": "pictures/1.png"}), None, None)


def test_answers_that_vlmevalkit_would_run_are_refused(table: Callable) -> None:
    rows = [
        {**ROW, "index": str(i), "answer": answer}
        for i, answer in enumerate(
            ["seven", "['a', 'b']", "f(x)", "1 + 1", "__import__('os').getcwd()", "[open('x')]", "().__class__()"]
        )
    ]
    read = read_benchmark_table(table(*rows), "VQA")
    assert list(read.faults) == ["4", "5", "6"]
    assert len(read.frame) == 4
    bare = {key: value for key, value in ROW.items() if key != "image"}
    read = read_benchmark_table(
        table({**bare, "image_path": "x.png"}, {**bare, "index": "2", "image_path": "[f()]"}), "VQA"
    )
    assert list(read.faults) == ["2"]


def test_items_of_a_cell() -> None:
    assert listed("['7', 'seven', 7]") == ["7", "seven", "7"]
    assert listed("seven") == ["seven"]


def test_a_quotation_mark_swallows_no_row(tmp_path: Path) -> None:
    """Three lines are three rows; marks that enclose a cell are no part of it, others are."""
    path = tmp_path / "t.tsv"
    path.write_text('question\tanswer\n"5 inch?\t"yes\nhow big?\t27" tv\n"a ""b"""\tx"\n', encoding="utf-8")
    frame = read_frame(path)
    assert list(frame["question"]) == ['"5 inch?', "how big?", 'a "b"']
    assert list(frame["answer"]) == ['"yes', '27" tv', 'x"']


def test_cells_of_several_lines_are_read_and_an_open_quotation_mark_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.tsv"
    path.write_text('question\tanswer\n"two\nlines\there"\tx\n', encoding="utf-8")
    assert list(read_frame(path)["question"]) == ["two\nlines\there"]
    path.write_text('question\tanswer\nq\tx\n"two\nlines" here\tx\n', encoding="utf-8")
    with pytest.raises(UniDPOError, match=r"t\.tsv, line 3: a cell begins with a quotation mark"):
        read_frame(path)
