"""Texts survive VLMEvalKit's Excel files."""

from pathlib import Path

import pandas as pd
import pytest

from uni_dpo.vlmeval.kit import texts_as_they_are

TEXTS = [
    "=1+1",
    '=HYPERLINK("x","y")',
    "five\r\nsix",
    "\x07bell",
    "\ud83d",
    "007",
    "None",
    "http://x/" + "y" * 3000,
    "",
]


def test_predictions_come_back_as_they_were_and_files_hold_no_formula(tmp_path: Path, kit: str) -> None:
    import openpyxl
    from vlmeval.smp import dump, load

    path = str(tmp_path / "p.xlsx")
    frame = pd.DataFrame({"index": range(len(TEXTS)), "prediction": TEXTS, "A": ["=2x", *[""] * 8]}).iloc[::-1]
    before = pd.DataFrame.to_excel, pd.read_excel
    with texts_as_they_are():
        dump(frame, path)
        read = load(path)
    assert (pd.DataFrame.to_excel, pd.read_excel) == before
    assert list(read["prediction"]) == TEXTS[::-1]
    assert list(read["index"]) == list(range(len(TEXTS)))[::-1]
    assert list(read.index) == list(range(len(TEXTS)))
    assert read["A"].isna().sum() == 8
    sheet = openpyxl.load_workbook(path).active
    assert not any(cell.data_type == "f" or cell.hyperlink for row in sheet.iter_rows() for cell in row)


def test_a_file_that_was_changed_is_read_as_it_is_now(tmp_path: Path, kit: str) -> None:
    from vlmeval.smp import dump, load

    path = tmp_path / "p.xlsx"
    with texts_as_they_are():
        dump(pd.DataFrame({"prediction": ["one"]}), str(path))
        other = tmp_path / "other.xlsx"
        other.write_bytes(path.read_bytes())
        assert list(load(str(other))["prediction"]) == ["one"]
        pd.DataFrame({"prediction": ["two"]}).to_excel(path)
        assert list(load(str(path))["prediction"]) == ["two"]


@pytest.mark.parametrize("name", ["to_excel", "read_excel"])
def test_pandas_is_put_back_after_an_error(name: str) -> None:
    owner = pd.DataFrame if name == "to_excel" else pd
    before = getattr(owner, name)
    with pytest.raises(ValueError, match="stop"), texts_as_they_are():
        raise ValueError("stop")
    assert getattr(owner, name) is before
