"""A log keeps whole rows only, each once, whenever its writer is killed."""

import json
from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.storage.rowlog import RowLog, kept
from uni_dpo.storage.writing import holding

ROWS = [{"id": "a", "x": 1}, {"id": "b", "x": "é\u2028\n\ud800"}, {"id": "c", "x": None}]


def test_a_file_cut_at_any_byte_keeps_exactly_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    RowLog(path).append(ROWS)
    whole = path.read_bytes()
    assert list(RowLog(path).rows.values()) == ROWS
    for cut in range(len(whole)):
        path.write_bytes(whole[:cut])
        log = RowLog(path)
        assert list(log.rows.values()) == ROWS[: whole[:cut].count(b"\n")]
        log.append(ROWS)
        assert list(RowLog(path).rows.values()) == ROWS
        ids = [json.loads(line)["id"] for line in path.read_bytes().splitlines()]
        assert len(ids) == whole[:cut].count(b"\n") + 3


def test_lines_that_are_no_rows_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'\x00\n[1]\n{"commit": {}}\n{"id": ["a"]}\n{"id": "a", "x": 1}\n{"id": "a", "x": 2}\n{"id"')
    assert RowLog(path).rows == {"a": {"id": "a", "x": 2}}


def test_what_is_kept_can_be_told(tmp_path: Path) -> None:
    log = RowLog(tmp_path / "log.jsonl", key="index")
    log.append([{"index": "1"}, {"index": "2"}])
    assert kept[log.path] == 2
    log.remove()
    assert log.path not in kept
    assert list(tmp_path.iterdir()) == []


def test_what_is_held_is_refused_to_others_and_nothing_empty_stays(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "one" / ".lock"
    with holding(path, "runs/one"):
        with pytest.raises(UniDPOError, match="runs/one: another run"), holding(path, "runs/one"):
            pass
        assert path.exists()
    assert list(tmp_path.iterdir()) == []
    with holding(path, "runs/one"):
        path.write_text("kept")
    assert path.read_text() == "kept"
