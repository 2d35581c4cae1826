import json
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.tables.json_stream import Unreadable
from uni_dpo.data.tables.reading import iter_rows, read_rows, source_files

ROWS = [{"id": i, "text": f"line one\nline two {i} é 像", "images": [f"{i}.png"], "score": i / 2} for i in range(70)]


def write_stream(path: Path, *, stream: bool) -> None:
    table = pa.Table.from_pylist(ROWS)
    make = pa.ipc.new_stream if stream else pa.ipc.new_file
    with make(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=16)


WRITERS = {
    "array.json": lambda p: p.write_text(json.dumps(ROWS)),
    "indented.json": lambda p: p.write_text(json.dumps(ROWS, indent=4, ensure_ascii=False), encoding="utf-8"),
    "bom.json": lambda p: p.write_text(json.dumps(ROWS), encoding="utf-8-sig"),
    "crlf.json": lambda p: p.write_bytes(json.dumps(ROWS, indent=1).replace("\n", "\r\n").encode()),
    "lines.json": lambda p: p.write_text("\n".join(map(json.dumps, ROWS))),
    "lines.jsonl": lambda p: p.write_text("\n".join(map(json.dumps, ROWS)) + "\n\n"),
    "crlf.jsonl": lambda p: p.write_bytes("\r\n".join(map(json.dumps, ROWS)).encode()),
    "bom.jsonl": lambda p: p.write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8-sig"),
    "table.parquet": lambda p: pq.write_table(pa.Table.from_pylist(ROWS), p, row_group_size=13),
    "stream.arrow": lambda p: write_stream(p, stream=True),
    "file.arrow": lambda p: write_stream(p, stream=False),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_file_type_gives_the_same_rows(tmp_path, name) -> None:
    WRITERS[name](tmp_path / name)
    assert list(iter_rows(tmp_path / name)) == ROWS


def test_saved_datasets_and_their_splits(tmp_path) -> None:
    import datasets

    saved = datasets.DatasetDict(
        train=datasets.Dataset.from_list(ROWS[:60]), test=datasets.Dataset.from_list(ROWS[60:])
    )
    saved.save_to_disk(tmp_path / "both", num_shards={"train": 3, "test": 1})
    assert list(iter_rows(tmp_path / "both")) == ROWS
    assert list(iter_rows(tmp_path / "both", "test")) == ROWS[60:]
    assert len(source_files(tmp_path / "both" / "train")) == 3
    with pytest.raises(PreferenceDataError, match="no split 'dev'; it has train, test"):
        source_files(tmp_path / "both", "dev")


def test_a_saved_dataset_cannot_name_files_outside_its_folder(tmp_path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    with pytest.raises(PreferenceDataError, match="outside the folder"):
        source_files(tmp_path)


def test_csv_columns_of_numbers_are_numbers(tmp_path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text('chosen,score,note\n"a, b",4.5,7\nc,,x\nd,e\n', encoding="utf-8-sig")
    assert [row for _, row in read_rows(file)] == [
        {"chosen": "a, b", "score": 4.5, "note": "7"},
        {"chosen": "c", "score": None, "note": "x"},
        Unreadable("line 4 has 2 cells; the header has 3"),
    ]


def test_a_broken_line_is_named_and_the_rest_is_read(tmp_path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n' + b"[" * 100_000 + b'\n{"a": 2}')
    rows = [row for _, row in read_rows(file)]
    assert rows[0] == {"a": 1}
    assert rows[3] == {"a": "\udcff"}
    assert rows[5] == {"a": 2}
    assert [type(rows[i]) for i in (1, 2, 4)] == [Unreadable] * 3
    with pytest.raises(PreferenceDataError, match=r"d\.jsonl, row 1, row: line 2 is not JSON"):
        list(iter_rows(file))


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ('[{"a": 1}, {"a": 2', 1, "row 1, row: not JSON from here on"),
        ('[{"a": 1}, {"a" 2}]', 1, "row 1, row: not JSON from here on"),
        ('[{"a": 1} {"a": 2}]', 1, "row 1, row: .*'{' where ',' or ']' belongs"),
        ('[{"a": 1}', 1, "the file ends here"),
        ('[{"a": 1},]', 1, "row 1, row: not JSON"),
        ('[{"a": 1}] 5', 1, "'5' follows the end of the list"),
        ("[" * 200_000, 0, "row 0, row: not JSON from here on"),
        ('{\n "a": 1\n}', 0, "holds one object"),
    ],
)
def test_a_broken_array_is_read_up_to_the_fault(tmp_path, text, count, message) -> None:
    file = tmp_path / "d.json"
    file.write_text(text)
    rows = []
    with pytest.raises(PreferenceDataError, match=message):
        rows.extend(read_rows(file))
    assert list(rows) == [(i, {"a": 1}) for i in range(count)]


def test_utf_16_is_refused_in_one_line(tmp_path) -> None:
    (tmp_path / "d.json").write_text("[]", encoding="utf-16")
    with pytest.raises(PreferenceDataError, match="is UTF-16; save it as UTF-8"):
        list(read_rows(tmp_path / "d.json"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.dictionaries(st.text(max_size=5), json_values, max_size=3), max_size=6), size=st.integers(1, 40)
)
def test_where_the_reading_window_ends_makes_no_difference(tmp_path_factory, rows, size) -> None:
    file = tmp_path_factory.mktemp("window") / "d.json"
    file.write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8", errors="surrogatepass")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("uni_dpo.data.tables.json_stream._CHUNK", size)
        assert list(iter_rows(file)) == json.loads(json.dumps(rows))


def test_fifty_megabytes_on_one_line_are_read_in_flat_memory(tmp_path) -> None:
    file = tmp_path / "line.json"
    row = json.dumps({"text": "word " * 200, "score": 3})
    count = 50_000_000 // len(row)
    with file.open("w") as out:
        out.write("[" + ",".join([row] * 1000))
        for _ in range(count // 1000 - 1):
            out.write("," + ",".join([row] * 1000))
        out.write("]")
    assert file.stat().st_size > 49_000_000
    tracemalloc.start()
    rows = sum(1 for _ in read_rows(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == count // 1000 * 1000
    assert peak < 12_000_000
