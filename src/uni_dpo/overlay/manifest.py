"""An overlay's own files, and what they did to a checkout, kept inside it so that it can be undone."""

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path

from uni_dpo.errors import UniDPOError
from uni_dpo.overlay.checkout import Upstream
from uni_dpo.storage.identity import file_digest
from uni_dpo.storage.writing import replacing, write_text

FOLDER = ".uni_dpo_overlay"


@dataclass
class Manifest:
    """The record of one `apply`.

    Attributes:
        written: place in the checkout → SHA-256 of what was written there.
        originals: place → SHA-256 of what stood there before; the files themselves lie in `originals/`.
        entry_text: what was put into `data/dataset_info.json`, or empty.
    """

    uni_dpo: str
    written: dict[str, str] = field(default_factory=dict)
    originals: dict[str, str] = field(default_factory=dict)
    entry_text: str = ""

    def keep_original(self, root: Path, place: str) -> None:
        """Copy what stands at `place` of the checkout `root`, if anything, to where `original` finds it."""
        source = inside(root, place)
        if (digest := sha256(source)) is not None:
            with replacing(original(root, place)) as temporary:
                shutil.copy2(source, temporary)
            self.originals[place] = digest

    def write(self, root: Path) -> None:
        """Keep this record in the checkout at `root`."""
        write_text(inside(root, f"{FOLDER}/manifest.json"), json.dumps(asdict(self), indent=2) + "\n")


def read_manifest(root: Path) -> Manifest | None:
    """Return the record in the checkout at `root`, None where no overlay was applied; a damaged one is refused."""
    file = inside(root, f"{FOLDER}/manifest.json")
    if not file.exists():
        return None
    try:
        return Manifest(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise UniDPOError(f"{file}: damaged ({error}); take the overlay out by hand, then delete {FOLDER}") from error


def discard_unused(root: Path) -> bool:
    """Remove what an `apply` left that was killed before it had a record; return whether there was something.

    Raises:
        UniDPOError: the record is missing, and an original that was kept is not what stands in the checkout.
    """
    folder = root / FOLDER
    if not folder.is_dir() or folder.is_symlink():
        return False
    originals = folder / "originals"
    for kept in sorted(path for path in originals.rglob("*") if path.is_file() and path.suffix != ".tmp"):
        place = kept.relative_to(originals)
        if sha256(kept) != sha256(inside(root, place.as_posix())):
            raise UniDPOError(f"{folder}: its record is missing; copy {kept} to {place} by hand, then delete {FOLDER}")
    shutil.rmtree(folder)
    return True


def original(root: Path, place: str) -> Path:
    """Tell where the original of `place` is kept."""
    return inside(root, f"{FOLDER}/originals/{place}")


def inside(root: Path, place: str) -> Path:
    """Return the path of `place` in the checkout `root`, itself a resolved path.

    Raises:
        UniDPOError: that is a link or a folder, or leads out of the checkout by `..`, a link or an absolute path.
    """
    path = root / place
    folder = path.parent.resolve()
    if path.is_symlink() or path.is_dir() or ".." in path.parts or not folder.is_relative_to(root):
        raise UniDPOError(
            f"{path}: is a link or a folder, or leads out of {root}; the overlay writes plain files, and only "
            "inside the checkout. Move it away, or put a real folder where the link is"
        )
    return path


def sha256(path: Path) -> str | None:
    """Return the file's SHA-256 in hexadecimal, or None where there is no file."""
    return file_digest(path) if path.is_file() else None


PACKAGE = Path(__file__).resolve().parents[1]
BUNDLE = "_overlay"
"""Folder inside an installed package that holds the repository's other folders."""
PLACES = {
    Upstream.LLAMAFACTORY: {"LlamaFactory": "", "data": "data", "examples": "examples", "scripts": "scripts"},
    Upstream.VLMEVALKIT: {"VLMEvalKit": ""},
}
"""Our folder → where its contents go in a checkout."""
PACKAGE_PLACE = {Upstream.LLAMAFACTORY: "src/uni_dpo", Upstream.VLMEVALKIT: "uni_dpo"}


def overlay_files(upstream: Upstream) -> dict[str, Path]:
    """Return every file of the overlay: its place in a checkout → where to copy it from.

    The same files that the one-line `cp -r` of the documentation copies.

    Raises:
        UniDPOError: this copy of the package has no overlay folders (it was itself copied into a checkout).
    """
    roots = (PACKAGE / BUNDLE, PACKAGE.parents[1])
    root = next((root for root in roots if all((root / upstream.value).is_dir() for upstream in Upstream)), None)
    if root is None:
        raise UniDPOError(
            f"{PACKAGE}: the overlay's files are not beside this copy of uni_dpo; run the command from a clone "
            "of the project or from `pip install uni-dpo`"
        )
    folders = {root / folder: place for folder, place in PLACES[upstream].items()} | {PACKAGE: PACKAGE_PLACE[upstream]}
    files = {}
    for folder, place in folders.items():
        for path in folder.rglob("*"):
            below = path.relative_to(folder)
            if path.is_file() and not path.is_symlink() and not {"__pycache__", BUNDLE} & set(below.parts):
                files[Path(place, below).as_posix()] = path
    return dict(sorted(files.items()))
