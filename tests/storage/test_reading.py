"""JSON files of models, runs and work directories: an object, or one line that names the file and what to do."""

from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.storage import read_json


def test_an_object_is_read_and_no_file_is_empty(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"a": "ä"}', encoding="utf-8")
    assert read_json(tmp_path / "a.json") == {"a": "ä"}
    assert read_json(tmp_path / "b.json") == {}


@pytest.mark.parametrize(
    ("content", "found"),
    [("{", "is not JSON: "), ("[1]", "holds no JSON object"), (b"\xff", "is not JSON: ")],
    ids=["cut", "list", "not text"],
)
def test_what_is_none_is_one_line(tmp_path: Path, content: str | bytes, found: str) -> None:
    file = tmp_path / "a.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UniDPOError) as caught:
        read_json(file, "copy it again")
    assert str(caught.value).startswith(f"{file} {found}")
    assert str(caught.value).endswith("; copy it again")
    assert "\n" not in str(caught.value)
