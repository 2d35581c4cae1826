"""Putting the overlay into a checkout, and taking it out again byte for byte."""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from uni_dpo import __version__
from uni_dpo.errors import UniDPOError
from uni_dpo.overlay.checkout import SIGNS, Checkout, datasets, entry_text, with_text, without_entry
from uni_dpo.overlay.manifest import (
    FOLDER,
    Manifest,
    discard_unused,
    inside,
    original,
    overlay_files,
    read_manifest,
    sha256,
)
from uni_dpo.storage.writing import check_writable, replacing, sweep, write_text

DATASET = "uni_dpo_image_only_mcq_short_long_50k"
DATASET_INFO = "data/dataset_info.json"
MARK = b"additions for Uni-DPO"
"""Stands in the lines around what is ours in an upstream file."""
OUR_DATASET_INFO = "data/uni_dpo/dataset_info.json"


class State(StrEnum):
    """How a place in the checkout stands to the overlay."""

    UP_TO_DATE = "up to date"
    ADD = "to add"
    REPLACE = "to replace (the original is kept)"
    UPDATE = "to update"
    REMOVE = "to remove (no longer part of the overlay)"
    ADD_ENTRY = f"to get the entry {DATASET}"
    OTHER_ENTRY = f"left alone: has another entry {DATASET}"
    CHANGED = "different, and not written by the overlay"


@dataclass(frozen=True)
class Change:
    """What `apply` would do at one place of the checkout."""

    place: str
    state: State

    @property
    def is_due(self) -> bool:
        """Whether there is anything to do."""
        return self.state not in (State.UP_TO_DATE, State.OTHER_ENTRY)


def check(checkout: Checkout) -> list[Change]:
    """Return what `apply` would do, place by place, writing nothing.

    Raises:
        UniDPOError: a place leads out of the checkout; `data/dataset_info.json` or our record is damaged.
    """
    manifest = read_manifest(checkout.root) or Manifest(__version__)
    files = overlay_files(checkout.upstream)
    changes = [Change(place, _state(checkout, place, source, manifest)) for place, source in files.items()]
    for place in (place for place in manifest.written if place not in files):
        changes.append(Change(place, State.REMOVE if _is_known(checkout.root, place, manifest) else State.CHANGED))
    info = inside(checkout.root, DATASET_INFO)
    if OUR_DATASET_INFO in files and info.is_file():
        changes.append(Change(DATASET_INFO, _entry_state(info, _our_entry(files), manifest)))
    return changes


def apply(checkout: Checkout, *, force: bool = False) -> list[Change]:
    """Bring the checkout to the state of the overlay, and return what was to do, as `check` states it.

    Once there, a second call changes nothing. What it overwrites is kept under `.uni_dpo_overlay/` together with a
    record for `revert`, both on disk before the first file is touched. An older overlay, or an interrupted one, is
    reverted first. `force` also overwrites what is different and not written by the overlay.

    Raises:
        UniDPOError: as `check`; or something is different, not written by the overlay, and no `force`.
    """
    changes = check(checkout)
    _refuse((change.place for change in changes if change.state is State.CHANGED), force)
    if not any(change.is_due for change in changes):
        return changes
    if read_manifest(checkout.root):
        revert(checkout, force=force)
    _write(checkout, [change.place for change in check(checkout) if change.is_due])
    return changes


def revert(checkout: Checkout | str | Path, *, force: bool = False) -> list[str]:
    """Take out what `apply` put in, and return the places; every byte of the checkout is then as it was before.

    What others put into the overlay's folders stays, and so do their datasets in `data/dataset_info.json`. A
    checkout that has moved to another version of upstream since keeps that version's files.

    Args:
        checkout: or its top folder, whatever upstream's version in it is by now.
        force: also discard what others changed in the overlay's files since.

    Raises:
        UniDPOError: no overlay was applied here; a kept original is missing; files of the overlay were changed
            since, and no `force`; or the checkout is write-protected.
    """
    root = checkout.root if isinstance(checkout, Checkout) else Path(checkout).expanduser().resolve()
    manifest = read_manifest(root)
    if manifest is None:
        if not discard_unused(root):
            raise UniDPOError(f"{root}: nothing to revert, `uni-dpo overlay apply` left no record here")
        return []
    _require_originals(root, manifest)
    changed = [place for place in manifest.written if not _is_known(root, place, manifest)]
    _refuse(changed, force)
    info = inside(root, DATASET_INFO)
    paths = [inside(root, place) for place in manifest.written]
    folders = _require_writable([root / FOLDER, *paths, *([info] if manifest.entry_text else [])])
    if manifest.entry_text and info.is_file():
        _rewrite(info, without_entry(info, info.read_bytes(), DATASET, manifest.entry_text.encode()))
    for place in manifest.written:
        _restore(root, place, manifest)
    for folder in folders:
        sweep(folder)
    for path in paths:
        _remove_empty_folders(root, path.parent)
    shutil.rmtree(root / FOLDER)
    return [*manifest.written, *([DATASET_INFO] if manifest.entry_text else [])]


def _require_writable(paths: Iterable[Path]) -> list[Path]:
    """Refuse a checkout that is write-protected, before anything in it is touched; return the folders that exist."""
    folders = dict.fromkeys(path.parent for path in paths)
    for folder in folders:
        check_writable(folder / "file")
    return list(filter(Path.is_dir, folders))


def _state(checkout: Checkout, place: str, source: Path, manifest: Manifest) -> State:
    present = sha256(inside(checkout.root, place))
    if present is None:
        return State.ADD
    if present == sha256(source):
        return State.UP_TO_DATE
    if present == manifest.written.get(place):
        return State.UPDATE
    is_original = present == manifest.originals.get(place)
    return State.REPLACE if is_original or _is_upstreams(checkout.root, place) else State.CHANGED


def _entry_state(info: Path, entry: dict[str, Any], manifest: Manifest) -> State:
    content = info.read_bytes()
    present = datasets(info, content).get(DATASET)
    if present is None:
        return State.ADD_ENTRY
    if present == entry:
        return State.UP_TO_DATE
    return State.UPDATE if manifest.entry_text and manifest.entry_text.encode() in content else State.OTHER_ENTRY


def _our_entry(files: Mapping[str, Path]) -> dict[str, Any]:
    source = files[OUR_DATASET_INFO]
    return dict(datasets(source, source.read_bytes())[DATASET])


def _refuse(places: Iterable[str], force: bool) -> None:
    named = "\n  ".join(places)
    if named and not force:
        raise UniDPOError(
            f"these files are not as the overlay knows them, somebody changed them:\n  {named}\n"
            "Nothing was written. Save your changes elsewhere; --force then overwrites these files"
        )


def _write(checkout: Checkout, places: Sequence[str]) -> None:
    root, files = checkout.root, overlay_files(checkout.upstream)
    _require_writable([root / FOLDER, *(inside(root, place) for place in places)])
    write_text(inside(root, f"{FOLDER}/.gitignore"), "*\n")  # first: a killed run is out of sight of git too
    manifest = Manifest(__version__)
    info = inside(root, DATASET_INFO)
    for place in places:
        if place == DATASET_INFO:
            manifest.entry_text = entry_text(info.read_bytes(), DATASET, _our_entry(files)).decode()
        else:
            manifest.keep_original(root, place)
            manifest.written[place] = sha256(files[place]) or ""
    manifest.write(root)
    for place in manifest.written:
        with replacing(inside(root, place)) as temporary:
            shutil.copy(files[place], temporary)
    if manifest.entry_text:
        _rewrite(info, with_text(info.read_bytes(), manifest.entry_text.encode()))


def _is_upstreams(root: Path, place: str) -> bool:
    """Whether the one file that we overwrite is upstream's, of whatever version, and holds nothing of ours."""
    path = inside(root, place)
    overwritten = any(place == signs.overwritten for signs in SIGNS.values())
    return overwritten and path.is_file() and MARK not in path.read_bytes()


def _is_known(root: Path, place: str, manifest: Manifest) -> bool:
    known = (None, manifest.written[place], manifest.originals.get(place))
    return sha256(inside(root, place)) in known or _is_upstreams(root, place)


def _require_originals(root: Path, manifest: Manifest) -> None:
    for place, wanted in manifest.originals.items():
        kept = original(root, place)
        if wanted not in (sha256(kept), sha256(inside(root, place))) and not _is_upstreams(root, place):
            raise UniDPOError(f"{kept}: missing or damaged; restore {place} from upstream's sources, then try again")


def _restore(root: Path, place: str, manifest: Manifest) -> None:
    path = inside(root, place)
    wanted = manifest.originals.get(place)
    if wanted is None:
        path.unlink(missing_ok=True)
    elif sha256(path) != wanted and not _is_upstreams(root, place):
        original(root, place).replace(path)


def _rewrite(path: Path, content: bytes) -> None:
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _remove_empty_folders(root: Path, folder: Path) -> None:
    while folder != root and folder.is_dir() and {item.name for item in folder.iterdir()} <= {"__pycache__"}:
        shutil.rmtree(folder)
        folder = folder.parent
