"""A final name never holds half a file."""

import json
from pathlib import Path

import pytest

from uni_dpo.storage.identity import folder_of
from uni_dpo.storage.writing import replacing, write_text


def test_a_finished_file_replaces_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    write_text(target, "one")
    write_text(target, "zwei ü")
    assert target.read_text(encoding="utf-8") == "zwei ü"
    assert list(target.parent.iterdir()) == [target]


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
