"""Our entry in a checkout's own `data/dataset_info.json`, every other byte of which stays as it is."""

import json
import re
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError


def datasets(file: Path, content: bytes) -> dict[str, Any]:
    """The datasets that `content`, read from `file`, describes.

    Raises:
        UniDPOError: `content` is no JSON object.
    """
    try:
        described = json.loads(content)
    except ValueError as error:
        raise UniDPOError(f"{file}: not valid JSON ({error}); fix it first") from error
    if not isinstance(described, dict):
        raise UniDPOError(f"{file}: expected a JSON object of datasets, found {type(described).__name__}")
    return described


def entry_text(content: bytes, name: str, entry: dict[str, Any]) -> bytes:
    """The member `name: entry` as it is to stand behind the last one of the JSON object `content`.

    In the indentation and the line ends of `content`, with the comma before it where one is needed.
    """
    first = re.search(rb"\{\s*?\n([ \t]+)\"", content)
    indent = first.group(1).decode() if first else "  "
    member = json.dumps({name: entry}, indent=indent).removeprefix("{").removesuffix("\n}")
    comma = "" if _end_of_members(content).endswith(b"{") else ","
    newline = "\r\n" if b"\r\n" in content else "\n"
    return (comma + member.replace("\n", newline)).encode()


def with_text(content: bytes, text: bytes) -> bytes:
    """`content` with `text` behind its last member."""
    members = _end_of_members(content)
    return members + text + content[len(members) :]


def without_entry(file: Path, content: bytes, name: str, text: bytes) -> bytes:
    """`content`, read from `file`, without the member `name` that was put in as `text`.

    Byte for byte what it was where the text still stands. A file that was reformatted since is written anew,
    and an entry that says something else by now is somebody's own and stays.
    """
    described = datasets(file, content)
    ours = json.loads(b"{" + text.removeprefix(b",") + b"}")[name]
    if described.get(name) != ours:
        return content
    del described[name]
    cut = content.replace(text, b"", 1)
    try:
        if datasets(file, cut) == described:
            return cut
    except UniDPOError:
        pass  # our entry was the first one: its comma now stands behind it
    return (json.dumps(described, indent=2, ensure_ascii=False) + "\n").encode()


def _end_of_members(content: bytes) -> bytes:
    return content[: content.rindex(b"}")].rstrip()
