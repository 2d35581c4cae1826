"""Which upstream project, and which version of it, lies in a folder, and our entry in its `dataset_info.json`."""

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory.seams import NEWEST, OLDEST, needed_names


class Upstream(StrEnum):
    """A project that an overlay exists for; the value is also the name of our folder for it."""

    LLAMAFACTORY = "LlamaFactory"
    VLMEVALKIT = "VLMEvalKit"


@dataclass(frozen=True)
class Signs:
    """How a checkout is recognised.

    Attributes:
        version_file: the file that states the version, relative to the checkout.
        tested: versions that the plugin is tested on.
        overwritten: the one upstream file that the overlay overwrites.
        others: further files that tell a checkout from an installed package.
    """

    version_file: str
    tested: SpecifierSet
    overwritten: str
    others: tuple[str, ...]


SIGNS = {
    Upstream.LLAMAFACTORY: Signs(
        version_file="src/llamafactory/extras/env.py",
        tested=SpecifierSet(f">={OLDEST},<={NEWEST}", prereleases=True),
        overwritten="src/llamafactory/train/dpo/__init__.py",
        others=("src/train.py",),
    ),
    Upstream.VLMEVALKIT: Signs(
        version_file="vlmeval/__init__.py",
        tested=SpecifierSet(">=0.2rc1,<0.3", prereleases=True),
        overwritten="vlmeval/vlm/qwen2_vl/__init__.py",
        others=("run.py",),
    ),
}


@dataclass(frozen=True)
class Checkout:
    """A folder that holds the sources of an upstream project."""

    root: Path
    upstream: Upstream
    version: str

    def __str__(self) -> str:
        return f"{self.upstream} {self.version} in {self.root}"

    def remarks(self) -> list[str]:
        """Say what there is to know before the overlay is applied: an untested version, something that it lacks."""
        remarks = []
        if self.upstream is Upstream.LLAMAFACTORY and (missing := self._missing()):
            remarks.append(
                f"pref_loss: uni_dpo will be refused here, because there is no {' and no '.join(missing)}; everything "
                f"else works. Check out one that is tested: git checkout v{NEWEST}"
            )
        tested = SIGNS[self.upstream].tested
        try:
            known = tested.contains(self.version)
        except InvalidVersion:
            known = False
        if not known:
            remarks.append(f"{self.upstream} {self.version} is not among the tested versions ({tested})")
        return remarks

    def _missing(self) -> list[str]:
        """Names that the plugin needs and that stand nowhere in the files of their modules."""
        missing = []
        for module, name in needed_names():
            place = self.root / "src" / module.replace(".", "/")
            file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
            text = file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
            if not re.search(rf"\b{name}\b", text):
                missing.append(f"{module}.{name}")
        return missing


def detect(path: str | Path) -> Checkout:
    """Recognise the checkout at `path` from its files, importing nothing; a `UniDPOError` where it is neither."""
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise UniDPOError(f"{path}: no such folder; give the folder of a LlamaFactory or VLMEvalKit checkout")
    for upstream, signs in SIGNS.items():
        needed = (signs.version_file, signs.overwritten, *signs.others)
        if all((root / file).is_file() for file in needed):
            text = (root / signs.version_file).read_text(encoding="utf-8", errors="replace")
            stated = re.search(r"""^(?:VERSION|__version__)\s*=\s*["']([^"']+)["']""", text, re.MULTILINE)
            if stated is None:
                raise UniDPOError(f"{root / signs.version_file}: states no version; is this {upstream}?")
            return Checkout(root, upstream, stated.group(1))
    looked_for = " or ".join(f"{signs.version_file} ({upstream})" for upstream, signs in SIGNS.items())
    raise UniDPOError(
        f"{root}: neither a LlamaFactory nor a VLMEvalKit checkout (looked for {looked_for} and the files "
        "beside it); give the top folder of the sources, not an installed package"
    )


def datasets(file: Path, content: bytes) -> dict[str, Any]:
    """Return the datasets that `content`, read from `file`, describes; a `UniDPOError` where it is no JSON object."""
    try:
        described = json.loads(content)
    except ValueError as error:
        raise UniDPOError(f"{file}: not valid JSON ({error}); fix it first") from error
    if not isinstance(described, dict):
        raise UniDPOError(f"{file}: expected a JSON object of datasets, found {type(described).__name__}")
    return described


def entry_text(content: bytes, name: str, entry: dict[str, Any]) -> bytes:
    """Return the member `name: entry` as it is to stand behind the last one of the JSON object `content`.

    In the indentation and the line ends of `content`, with the comma before it where one is needed.
    """
    first = re.search(rb"\{\s*?\n([ \t]+)\"", content)
    indent = first.group(1).decode() if first else "  "
    member = json.dumps({name: entry}, indent=indent).removeprefix("{").removesuffix("\n}")
    comma = "" if _end_of_members(content).endswith(b"{") else ","
    newline = "\r\n" if b"\r\n" in content else "\n"
    return (comma + member.replace("\n", newline)).encode()


def with_text(content: bytes, text: bytes) -> bytes:
    """Return `content` with `text` behind its last member."""
    members = _end_of_members(content)
    return members + text + content[len(members) :]


def without_entry(file: Path, content: bytes, name: str, text: bytes) -> bytes:
    """Return `content`, read from `file`, without the member `name` that was put in as `text`.

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
