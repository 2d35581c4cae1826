"""What a file or a setting is known by: digests, seeds, versions, folders named after them."""

import hashlib
import json
import platform
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from uni_dpo.storage.writing import write_text


def derive_seed(*parts: object) -> int:
    """Return a 63-bit seed that depends on all `parts` and on nothing else, least of all on a row's position."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


WEIGHTS = (".safetensors", ".bin")
"""How the names of a checkpoint's weight files end."""


def file_stamps(folder: str | Path, suffixes: tuple[str, ...] = ()) -> list[list[Any]]:
    """Name, size and time (nanoseconds) of the files in a folder: what a retrained checkpoint is noticed by.

    Nothing where there is no folder, as for a name on the hub. Where `suffixes` are given, only files with those.
    """
    here = Path(folder).iterdir() if str(folder) and Path(folder).is_dir() else ()
    files = sorted(file for file in here if file.is_file() and (not suffixes or file.suffix in suffixes))
    return [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def file_digest(path: str | Path) -> str:
    """Return SHA-256 of a file's content, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def contents(paths: Iterable[str]) -> list[str]:
    """Return `file_digest` of each file, which is read anew only once it has changed."""
    states = [(path, Path(path).stat()) for path in paths]
    return [_digest_of(path, state.st_mtime_ns, state.st_size) for path, state in states]


@lru_cache(maxsize=100_000)
def _digest_of(path: str, changed: int, size: int) -> str:
    return file_digest(path)


def digest(value: object) -> str:
    """Return SHA-256 of a JSON value, whatever the order of its keys; 16 hexadecimal digits."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def versions_of(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of Python and of those packages that are installed."""
    found = {"python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def difference(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Return the settings that differ, each with its old and its new value."""
    changed = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return ", ".join(f"{key} was {_short(old.get(key))}, is {_short(new.get(key))}" for key in changed)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:59]}…"


def folder_of(identity: dict[str, Any], folder: Path) -> Path:
    """Return the place in `folder` of what depends on all of `identity`, with that in its `identity.json`.

    What is not JSON-like in it stands there as text.
    """
    text = json.dumps(identity, indent=1, sort_keys=True, default=str)
    found = folder / hashlib.sha256(text.encode()).hexdigest()[:24]
    if not (found / "identity.json").exists():
        write_text(found / "identity.json", text)
    return found
