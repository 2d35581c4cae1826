import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from uni_dpo.engine.workdir import StageLog, WorkDir
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import Usage

BATCHES = [[{"id": "a", "x": 1}, {"id": "b", "x": 2}], [{"id": "c", "x": "é\u2028\n"}], [{"id": "d", "failed": "no"}]]


def written(path):
    log = StageLog(path)
    for number, batch in enumerate(BATCHES, start=1):
        log.commit(batch, Usage(requests=number, faults={"timeout": 1}))
    return path.read_bytes()


def test_a_log_reads_back_what_was_appended(tmp_path):
    written(tmp_path / "s.jsonl")
    log = StageLog(tmp_path / "s.jsonl")
    assert list(log.rows.values()) == [row for batch in BATCHES for row in batch]
    assert set(log.succeeded()) == {"a", "b", "c"}
    assert log.usage.requests == 6
    assert log.usage.faults == {"timeout": 3}


@settings(max_examples=60)
@given(data=st.data())
def test_a_file_cut_at_any_byte_keeps_exactly_its_whole_batches(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("log") / "s.jsonl"
    whole = written(path)
    cut = data.draw(st.integers(0, len(whole)))
    ends = [0]
    for line in whole.splitlines(keepends=True):
        ends.append(ends[-1] + len(line))
    commits = [end for end, line in zip(ends[1:], whole.split(b"\n"), strict=False) if b'"commit"' in line]
    path.write_bytes(whole[:cut])
    log = StageLog(path)
    kept = sum(end <= cut for end in commits)
    assert list(log.rows) == [row["id"] for batch in BATCHES[:kept] for row in batch]
    assert path.stat().st_size == max([0, *(end for end in commits if end <= cut)])
    log.commit([{"id": "z"}], Usage())
    assert "z" in StageLog(path).rows


def test_noise_at_the_end_is_dropped(tmp_path):
    path = tmp_path / "s.jsonl"
    whole = written(path)
    path.write_bytes(whole + b"\x00\x00\x00")
    assert len(StageLog(path).rows) == 4
    assert path.read_bytes() == whole


def test_a_row_given_again_counts_as_last_given(tmp_path):
    path = tmp_path / "s.jsonl"
    written(path)
    StageLog(path).commit([{"id": "d", "x": 4}], Usage())
    assert StageLog(path).succeeded()["d"] == {"id": "d", "x": 4}


def test_a_second_run_is_refused(tmp_path):
    work = WorkDir(tmp_path)
    with work.locked(), pytest.raises(UniDPOError, match="another run"), WorkDir(tmp_path).locked():
        pass
    with work.locked():
        pass


def test_a_refused_run_leaves_no_directory_behind(tmp_path):
    with pytest.raises(UniDPOError), WorkDir(tmp_path / "runs" / "w").locked():
        raise UniDPOError("no")
    assert list(tmp_path.iterdir()) == []


def test_what_stood_there_or_was_written_stays(tmp_path):
    (tmp_path / "mine").mkdir()
    with WorkDir(tmp_path / "mine").locked():
        pass
    assert list((tmp_path / "mine").iterdir()) == []
    work = WorkDir(tmp_path / "new")
    with work.locked():
        work.write_manifest({"a": 1})
    assert work.manifest() == {"a": 1}


def test_a_damaged_manifest_is_named(tmp_path):
    work = WorkDir(tmp_path)
    work.write_manifest({"a": 1})
    assert json.loads(work.manifest_path.read_text()) == work.manifest() == {"a": 1}
    work.manifest_path.write_text("{")
    with pytest.raises(UniDPOError, match=r"manifest\.json is not JSON: .*; take another --work-dir"):
        work.manifest()
