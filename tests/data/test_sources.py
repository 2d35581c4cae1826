import json
import struct
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.tables.json_stream import Unreadable
from uni_dpo.data.tables.reading import iter_rows, numbered_rows, one_split, source_files

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
    (held_out,) = one_split(tmp_path / "both", "test")
    assert [row for *_, row in numbered_rows(held_out)] == ROWS[60:]
    assert len(source_files(tmp_path / "both" / "train")) == 3
    with pytest.raises(PreferenceDataError, match="no split 'dev'; it has train, test"):
        one_split(tmp_path / "both", "dev")


def test_a_saved_dataset_cannot_name_files_outside_its_folder(tmp_path) -> None:
    (tmp_path / "state.json").write_text(json.dumps({"_data_files": [{"filename": "../secret.arrow"}]}))
    with pytest.raises(PreferenceDataError, match="outside the folder"):
        source_files(tmp_path)


def test_csv_columns_of_numbers_are_numbers(tmp_path) -> None:
    file = tmp_path / "pairs.csv"
    file.write_text('chosen,score,note\n"a, b",4.5,7\nc,,x\nd,e\n', encoding="utf-8-sig")
    assert [row for *_, row in numbered_rows(file)] == [
        {"chosen": "a, b", "score": 4.5, "note": "7"},
        {"chosen": "c", "score": None, "note": "x"},
        Unreadable("has 2 cells; the header has 3"),
    ]


def test_a_broken_line_is_named_and_the_rest_is_read(tmp_path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_bytes(b'{"a": 1}\n{"a": \n[1]\n{"a": "\xff"}\n' + b"[" * 100_000 + b'\n{"a": 2}')
    rows = [row for *_, row in numbered_rows(file)]
    assert rows[0] == {"a": 1}
    assert rows[3] == {"a": "\udcff"}
    assert rows[5] == {"a": 2}
    assert [type(rows[i]) for i in (1, 2, 4)] == [Unreadable] * 3
    with pytest.raises(PreferenceDataError, match=r"d\.jsonl, row 1 \(line 2\), row: is not JSON"):
        list(iter_rows(file))


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ('[{"a": 1}, {"a": 2', 1, "row 1 \\(line 1\\), row: not JSON from here on"),
        ('[{"a": 1}, {"a" 2}]', 1, "row 1 \\(line 1\\), row: not JSON from here on"),
        ('[{"a": 1} {"a": 2}]', 1, "row 1 .*'{' where ',' or ']' belongs"),
        ('[{"a": 1}', 1, "the file ends here"),
        ('[{"a": 1},]', 1, "row 1 .*not JSON"),
        ('[{"a": 1}] 5', 1, "'5' follows the end of the list"),
        ("[" * 200_000, 0, "row 0 .*not JSON from here on"),
        ('{\n "a": 1\n}', 0, "holds one object"),
    ],
)
def test_a_broken_array_is_read_up_to_the_fault(tmp_path, text, count, message) -> None:
    file = tmp_path / "d.json"
    file.write_text(text)
    rows = []
    with pytest.raises(PreferenceDataError, match=message):
        rows.extend((index, row) for index, _, row in numbered_rows(file))
    assert rows == [(i, {"a": 1}) for i in range(count)]


def test_utf_16_is_refused_in_one_line(tmp_path) -> None:
    (tmp_path / "d.json").write_text("[]", encoding="utf-16")
    with pytest.raises(PreferenceDataError, match="is UTF-16; save it as UTF-8"):
        list(numbered_rows(tmp_path / "d.json"))


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
    rows = sum(1 for _ in numbered_rows(file))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows == count // 1000 * 1000
    assert peak < 12_000_000


def test_questions_and_answers_of_a_csv_are_texts(tmp_path) -> None:
    (tmp_path / "d.csv").write_text("instruction,chosen,rejected,score_chosen\n7,3,4,5\n8,1,2,4\n")
    *_, row = next(numbered_rows(tmp_path / "d.csv"))
    assert row == {"instruction": "7", "chosen": "3", "rejected": "4", "score_chosen": 5}


def test_numbers_of_a_csv_keep_their_kind(tmp_path) -> None:
    file = tmp_path / "d.csv"
    file.write_text("id,count,share,code\n007,3,0.5,1_0\n8,,2,+1\n9,-4,1e2,1\n")
    rows = [row for *_, row in numbered_rows(file)]
    assert rows == [
        {"id": "007", "count": 3, "share": 0.5, "code": "1_0"},
        {"id": "8", "count": None, "share": 2, "code": "+1"},
        {"id": "9", "count": -4, "share": 100.0, "code": "1"},
    ]
    assert isinstance(rows[0]["count"], int)


def test_integers_beside_a_gap_stay_integers_in_parquet(tmp_path) -> None:
    columns = {"count": [3.0, None, 5.0], "rate": [1.0, None, 2.5], "whole": [1.0, 2.0, 3.0]}
    pq.write_table(pa.table(columns), tmp_path / "d.parquet")
    rows = list(iter_rows(tmp_path / "d.parquet"))
    assert rows == [{name: column[i] for name, column in columns.items()} for i in range(3)]
    assert [type(rows[0][name]) for name in columns] == [int, float, float]


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('a,b\n1,"He said\n2,fine\n3,"good"\n', 2),  # the mark of line 2 would end in line 4
        ('a,b\n1,x\n2,"to the end\n3,y\n', 3),
    ],
)
def test_a_quotation_mark_that_would_take_other_rows_is_named(tmp_path, text, line) -> None:
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(PreferenceDataError, match=f"line {line}: a quotation mark opens"):
        list(numbered_rows(tmp_path / "d.csv"))


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_marks_between_columns_are_named(tmp_path, mark) -> None:
    (tmp_path / "d.csv").write_text(f"a{mark}b\n1,5{mark}x\n")
    with pytest.raises(PreferenceDataError, match="stands between its columns; save it with commas"):
        list(numbered_rows(tmp_path / "d.csv"))


def test_a_quoted_cell_may_hold_lines(tmp_path) -> None:
    (tmp_path / "d.csv").write_text('a,b\n1,"one\ntwo ""2"" "\n3,x\n')
    assert [(line, row) for _, line, row in numbered_rows(tmp_path / "d.csv")] == [
        (2, {"a": 1, "b": 'one\ntwo "2" '}),
        (4, {"a": 3, "b": "x"}),
    ]


@pytest.mark.parametrize(
    "text", ['\n\n[\n{"a": "x\\n"},\n\n{\n"a": 2},{"a": 3}]', '\n\n\n{"a": 1}\n\n\n{"a": 2}\n{"a": 3}']
)
def test_rows_know_the_line_they_start_in(tmp_path, text) -> None:
    (tmp_path / "d.json").write_text(text)
    found = [line for _, line, _ in numbered_rows(tmp_path / "d.json")]
    assert found == ([4, 6, 7] if "[" in text else [4, 7, 8])


def broken_text_column() -> pa.Array:
    return pa.Array.from_buffers(
        pa.string(), 2, [None, pa.array([0, 1, 3], pa.int32()).buffers()[1], pa.py_buffer(b"a\xff\xfe")]
    )


def test_broken_texts_of_a_columnar_file_are_one_line(tmp_path) -> None:
    table = pa.table({"text": broken_text_column()})
    pq.write_table(table, tmp_path / "d.parquet")
    with pa.OSFile(str(tmp_path / "d.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("d.parquet", "d.arrow"):
        with pytest.raises(PreferenceDataError, match=f"{name}, column 'text': holds broken values"):
            list(numbered_rows(tmp_path / name))


def test_offsets_beyond_the_texts_do_not_end_the_process(tmp_path) -> None:
    table = pa.table({"text": ["a", "bc"]})
    with pa.OSFile(str(tmp_path / "d.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    written = (tmp_path / "d.arrow").read_bytes()
    assert written.count(struct.pack("<3i", 0, 1, 3)) == 1
    (tmp_path / "d.arrow").write_bytes(written.replace(struct.pack("<3i", 0, 1, 3), struct.pack("<3i", 0, 1, 2**30)))
    with pytest.raises(PreferenceDataError, match="broken values"):
        list(numbered_rows(tmp_path / "d.arrow"))


def test_a_column_name_that_is_not_utf8_is_a_fault_of_its_row(tmp_path) -> None:
    (tmp_path / "d.jsonl").write_bytes(b'{"a": 1}\n{"a\xff": 2}\n{"a": 3}\n')
    rows = [row for *_, row in numbered_rows(tmp_path / "d.jsonl")]
    assert [type(row) for row in rows] == [dict, Unreadable, dict]
    assert "is not UTF-8" in rows[1].reason


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ".arrow", ".csv"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "pointer of Git LFS.*git lfs pull"),
        (b"\n<!DOCTYPE html><html>404</html>", "web page.*download the file itself"),
    ],
)
def test_what_was_not_fetched_is_named(tmp_path, suffix, content, said) -> None:
    path = tmp_path / f"pairs{suffix}"
    path.write_bytes(content)
    with pytest.raises(PreferenceDataError, match=said):
        list(numbered_rows(path))
