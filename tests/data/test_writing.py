import math
from collections.abc import Iterator

import pytest

from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.tables.reading import iter_rows
from uni_dpo.data.tables.writing import write_rows


def widening_rows() -> list[dict]:
    """Types that only show in later batches: empty list → texts, whole numbers → fractions, a new column."""
    rows = [{"n": i, "images": [], "s": 4, "m": [{"from": "h", "value": "像"}]} for i in range(5_000)]
    rows[2_500] |= {"images": ["a.png"]}
    rows[4_500] |= {"s": 4.5, "extra": {"a": 1}}
    return rows


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_rows_come_back_as_they_were(tmp_path, suffix) -> None:
    path = tmp_path / f"rows{suffix}"
    assert write_rows(path, widening_rows()) == 5_000
    back = [{key: value for key, value in row.items() if value is not None} for row in iter_rows(path)]
    assert back == widening_rows()
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet"])
def test_an_error_leaves_what_was_there(tmp_path, suffix) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_text("before")

    def interrupted_rows() -> Iterator[dict]:
        yield from widening_rows()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_rows(path, interrupted_rows())
    assert path.read_text() == "before"
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_values_that_do_not_fit_are_named(tmp_path) -> None:
    with pytest.raises(PreferenceDataError, match="column 'a': values of several types"):
        write_rows(tmp_path / "d.parquet", [{"a": 1}, {"a": "x"}])
    with pytest.raises(PreferenceDataError, match="rows 2000 to 2000: unlike the rows before"):
        write_rows(tmp_path / "d.parquet", [{"a": 1}] * 2000 + [{"a": "x"}])
    with pytest.raises(PreferenceDataError, match="there is no row to write"):
        write_rows(tmp_path / "d.parquet", [])
    with pytest.raises(PreferenceDataError, match="row 1, a: cannot be written as JSON"):
        write_rows(tmp_path / "d.json", [{"a": 1}, {"a": "\udcff"}])
    with pytest.raises(PreferenceDataError, match=r"name a file of type \.json"):
        write_rows(tmp_path / "d.txt", [])
    assert list(tmp_path.iterdir()) == []
    write_rows(tmp_path / "none.json", [])
    assert (tmp_path / "none.json").read_text() == "[\n]\n"


@pytest.mark.parametrize("value", [math.nan, math.inf, {"deep": [-math.inf]}])
@pytest.mark.parametrize("name", ["d.json", "d.jsonl"])
def test_what_is_no_number_of_json_is_not_written(tmp_path, name, value) -> None:
    with pytest.raises(PreferenceDataError, match=f"{name}, row 1, b: cannot be written as JSON"):
        write_rows(tmp_path / name, [{"a": 1}, {"a": 2, "b": value}])
    assert not (tmp_path / name).exists()
