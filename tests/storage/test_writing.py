"""A final name never holds half a file."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.storage.identity import digest, file_digest, file_stamps, folder_of
from uni_dpo.storage.writing import check_writable, finite, new_folder, replacing, write_text


def test_a_finished_file_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    write_text(target, "one")
    write_text(target, "zwei ü")
    assert target.read_text(encoding="utf-8") == "zwei ü"
    assert list(target.parent.iterdir()) == [target]


def test_a_file_for_which_there_is_no_room_is_named(tmp_path: Path) -> None:
    """The system stands in for a full disk: no file of this process may be longer than ten bytes."""
    target = tmp_path / "file.txt"
    target.write_text("old")
    write = (
        "import resource, signal, sys; from uni_dpo.storage.writing import write_text; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10)); "
        "write_text(sys.argv[1], 'x' * 100)"
    )
    done = subprocess.run([sys.executable, "-c", write, str(target)], capture_output=True, text=True)
    assert f"UniDPOError: {target}: cannot be written (File too large)" in done.stderr
    assert target.read_text() == "old"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_interrupted_write_leaves_everything_as_it_was(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write_half() -> None:
        with replacing(target) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_is_named_after_all_that_it_depends_on(tmp_path: Path) -> None:
    first = folder_of({"model": "a", "sizes": [1, 2]}, tmp_path)
    assert json.loads((first / "identity.json").read_text()) == {"model": "a", "sizes": [1, 2]}
    assert folder_of({"sizes": [1, 2], "model": "a"}, tmp_path) == first
    assert folder_of({"model": "a", "sizes": [1, 3]}, tmp_path) != first
    assert folder_of({"model": tmp_path}, tmp_path).is_dir()


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_replaced_file_keeps_its_mode(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "private.json"
    target.write_text("old")
    target.chmod(mode)
    with replacing(target) as temporary:
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o600
        temporary.write_text("new")
    assert target.read_text() == "new"
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_behind_a_link_its_file_is_written_and_the_link_stays(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    for target in ("real/there.txt", "real/new.txt"):
        link = tmp_path / "link.txt"
        link.unlink(missing_ok=True)
        link.symlink_to(target)
        write_text(link, target)
        assert link.is_symlink()
        assert (tmp_path / target).read_text() == target
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(UniDPOError, match="name another file"):
        write_text(tmp_path / "a", "")


@pytest.mark.parametrize("check", [check_writable, lambda path: write_text(path, "")])
def test_what_is_no_regular_file_is_refused(tmp_path: Path, check) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_text("")
    for path, found in (
        (tmp_path / "pipe", "is a named pipe"),
        (tmp_path, "is a folder"),
        (Path("/dev/null"), "is a device"),
        (tmp_path / "file" / "below", "Not a directory"),
        (tmp_path / ("x" * 300), "File name too long"),
    ):
        with pytest.raises(UniDPOError, match=found):
            check(path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "pipe"]


def test_asking_whether_a_file_can_be_written_leaves_nothing(tmp_path: Path) -> None:
    check_writable(tmp_path / "not" / "there" / "yet.json")
    assert list(tmp_path.iterdir()) == []


def test_the_longest_name_of_a_file_can_be_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("n" * 255), "x")
    write_text(tmp_path / ("ü" * 127), "y")
    assert {len(os.fsencode(path.name)) for path in tmp_path.iterdir()} == {255, 254}


WRITER = """
import sys, time
from uni_dpo.storage.writing import replacing
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("half")
    print("writing", flush=True)
    time.sleep(60)
"""


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    def writer() -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path / "out.json")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        return process

    killed = writer()
    (left,) = (path.name for path in tmp_path.iterdir())
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    living = writer()
    (alive,) = (path.name for path in tmp_path.iterdir())
    assert alive != left
    (tmp_path / ".notes.tmp").write_text("somebody's own")
    write_text(tmp_path / "other.json", "")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([".notes.tmp", alive, "other.json"])
    living.kill()
    living.wait()


def test_files_are_known_by_name_size_and_time_or_by_content(tmp_path: Path) -> None:
    (tmp_path / "b.bin").write_bytes(b"abc")
    (tmp_path / "a.json").write_bytes(b"")
    (tmp_path / "folder.bin").mkdir()
    os.utime(tmp_path / "b.bin", ns=(0, 1_500_000_001))
    os.utime(tmp_path / "a.json", ns=(0, 2))
    assert file_stamps(tmp_path) == [["a.json", 0, 2], ["b.bin", 3, 1_500_000_001]]
    assert file_stamps(str(tmp_path), (".bin",)) == [["b.bin", 3, 1_500_000_001]]
    assert file_stamps("") == file_stamps("a/name-on-the-hub") == []
    assert file_digest(tmp_path / "b.bin") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_fingerprints_of_existing_work_dirs_hold() -> None:
    """Worked out with `printf … | sha256sum`: sorted keys, text as it is, sixteen digits."""
    assert digest({"b": 1, "a": "é"}) == "799d49d45db67c58"


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    with new_folder(tmp_path / "in" / "a") as folder:
        (folder / "x").write_text("1")
        assert not (tmp_path / "in" / "a").exists()
    assert (tmp_path / "in" / "a" / "x").read_text() == "1"
    with pytest.raises(UniDPOError, match="is there already"), new_folder(tmp_path / "in" / "a"):
        pass
    with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "in" / "b") as folder:
        (folder / "x").write_text(str(1 / 0))
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["a"]


def test_numbers_that_json_has_not_are_none() -> None:
    given = {"a": (1, float("nan")), 2: [float("inf"), {"b": -float("inf")}], "c": "nan"}
    assert finite(given) == {"a": [1, None], "2": [None, {"b": None}], "c": "nan"}
