"""What is finished stays finished, and belongs to one fingerprint."""

import json
from pathlib import Path

from uni_dpo.models.checkpoint import Checkpoint
from uni_dpo.vlmeval.rows import Journal, checkpoint_identity


def test_answers_are_read_back_by_any_process(tmp_path: Path) -> None:
    Journal(tmp_path, {"a": 1}, rank=0).append("1", "one\n\u2028two")
    Journal(tmp_path, {"a": 1}, rank=0).append("2", "\ud800")
    Journal(tmp_path, {"a": 1}, rank=1).append("3", "three")
    assert Journal(tmp_path, {"a": 1}).read() == {"1": "one\n\u2028two", "2": "\ud800", "3": "three"}
    assert Journal(tmp_path, {"a": 2}).read() == {}
    assert json.loads((Journal(tmp_path, {"a": 1}).folder / "fingerprint.json").read_text()) == {"a": 1}


def test_which_answers_were_cut_is_kept(tmp_path: Path) -> None:
    Journal(tmp_path, {}, rank=0).append("1", "It is a lo", cut=True)
    Journal(tmp_path, {}, rank=1).append("2", "two")
    journal = Journal(tmp_path, {})
    assert journal.cut() == {"1"}
    assert journal.read() == {"1": "It is a lo", "2": "two"}


def test_a_line_cut_off_by_a_kill_costs_only_itself(tmp_path: Path) -> None:
    journal = Journal(tmp_path, {})
    journal.append("1", "one")
    journal.append("2", "two")
    path = journal.folder / "answers-0.jsonl"
    path.write_bytes(path.read_bytes()[:-5])
    path.write_bytes(path.read_bytes() + b'\n{"index": "2", "answer": null}\n{"answer": "x"}\n')
    again = Journal(tmp_path, {})
    assert again.read() == {"1": "one"}
    again.append("2", "two")
    again.append("3", "three")
    assert again.read() == {"1": "one", "2": "two", "3": "three"}


def test_a_checkpoint_is_told_by_content(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "copy", "other")]
    for folder, weight in zip(folders, (b"1", b"1", b"2"), strict=True):
        folder.mkdir()
        (folder / "config.json").write_text("{}", encoding="utf-8")
        (folder / "model.safetensors").write_bytes(weight)
        (folder / "trainer_log.jsonl").write_text(folder.name, encoding="utf-8")
    one, copy, other = (checkpoint_identity(Checkpoint(folder, None, "qwen2_vl")) for folder in folders)
    assert one == copy
    assert one != other
    with_adapter = checkpoint_identity(Checkpoint(folders[0], folders[2], "qwen2_vl"))
    assert with_adapter["base"] == one["base"]
    assert with_adapter != one


def test_a_journal_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    """They began a new line after one that a kill had cut off, and wrote every character that is not ASCII escaped."""
    journal = Journal(tmp_path, {})
    path = journal.folder / "answers-0.jsonl"
    path.write_text('{"index": "1", "answer": "\\u00e9"}\n{"index": "2", "ans\n{"index": "3", "answer": "x"}\n')
    assert Journal(tmp_path, {}).read() == {"1": "é", "3": "x"}
