"""Where the overlay's own files are: in this repository, or inside the installed package."""

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from uni_dpo.errors import UniDPOError
from uni_dpo.overlay.checkout import Upstream

PACKAGE = Path(__file__).resolve().parents[1]
BUNDLE = "_overlay"
"""Folder inside an installed package that holds the repository's other folders."""

PARTS: dict[Upstream, tuple[str, ...]] = {
    Upstream.LLAMAFACTORY: ("data", "examples", "scripts"),
    Upstream.VLMEVALKIT: (),
}
"""Folders that are copied under their own name, beside the contents of the upstream's own folder."""

PACKAGE_PLACE = {
    Upstream.LLAMAFACTORY: PurePosixPath("src/uni_dpo"),
    Upstream.VLMEVALKIT: PurePosixPath("uni_dpo"),
}


def overlay_files(upstream: Upstream) -> dict[PurePosixPath, Path]:
    """Every file of the overlay: its place in a checkout → where to copy it from.

    The same files that the one-line `cp -r` of the documentation copies.

    Raises:
        UniDPOError: this copy of the package has no overlay folders (it was itself copied into a checkout).
    """
    root = _root()
    files = dict(_files(root / upstream.value, PurePosixPath()))
    for part in PARTS[upstream]:
        files.update(_files(root / part, PurePosixPath(part)))
    files.update(_files(PACKAGE, PACKAGE_PLACE[upstream]))
    return dict(sorted(files.items()))


def _root() -> Path:
    for root in (PACKAGE / BUNDLE, PACKAGE.parents[1]):
        if all((root / upstream.value).is_dir() for upstream in Upstream):
            return root
    raise UniDPOError(
        f"{PACKAGE}: the overlay's files are not beside this copy of uni_dpo; run the command from a clone "
        "of the project or from `pip install uni-dpo`"
    )


def _files(folder: Path, place: PurePosixPath) -> Iterator[tuple[PurePosixPath, Path]]:
    for path in folder.rglob("*"):
        inside = path.relative_to(folder)
        if path.is_file() and not path.is_symlink() and not {"__pycache__", BUNDLE} & set(inside.parts):
            yield place / inside.as_posix(), path
