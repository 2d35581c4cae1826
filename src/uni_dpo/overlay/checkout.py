"""Which upstream project, and which version of it, lies in a folder."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path, PurePosixPath

from uni_dpo.errors import UniDPOError


class Upstream(StrEnum):
    """A project that an overlay exists for; the value is also the name of our folder for it."""

    LLAMAFACTORY = "LlamaFactory"
    VLMEVALKIT = "VLMEvalKit"


@dataclass(frozen=True)
class Signs:
    """How a checkout is recognised.

    Attributes:
        version_file: the file that states the version, relative to the checkout.
        version: the statement in it, the version as first group.
        tested: versions that the plugin is tested on, as they begin.
        overwritten: the one upstream file that the overlay overwrites.
        others: further files that tell a checkout from an installed package.
    """

    version_file: PurePosixPath
    version: re.Pattern[str]
    tested: tuple[str, ...]
    overwritten: PurePosixPath
    others: tuple[PurePosixPath, ...]


SIGNS = {
    Upstream.LLAMAFACTORY: Signs(
        version_file=PurePosixPath("src/llamafactory/extras/env.py"),
        version=re.compile(r"""^VERSION\s*=\s*["']([^"']+)["']""", re.MULTILINE),
        tested=("0.9.4", "0.9.5"),
        overwritten=PurePosixPath("src/llamafactory/train/dpo/__init__.py"),
        others=(PurePosixPath("src/train.py"),),
    ),
    Upstream.VLMEVALKIT: Signs(
        version_file=PurePosixPath("vlmeval/__init__.py"),
        version=re.compile(r"""^__version__\s*=\s*["']([^"']+)["']""", re.MULTILINE),
        tested=("0.2",),
        overwritten=PurePosixPath("vlmeval/vlm/qwen2_vl/__init__.py"),
        others=(PurePosixPath("run.py"),),
    ),
}


@dataclass(frozen=True)
class Checkout:
    """A folder that holds the sources of an upstream project in a version the overlay fits."""

    root: Path
    upstream: Upstream
    version: str

    def __str__(self) -> str:
        return f"{self.upstream} {self.version} in {self.root}"


def detect(path: str | Path) -> Checkout:
    """Recognise the checkout at `path` from its files, importing nothing.

    Raises:
        UniDPOError: `path` is no checkout of LlamaFactory or VLMEvalKit, or of a version that is not tested.
    """
    root = Path(path).expanduser().resolve()
    if not root.is_dir():
        raise UniDPOError(f"{path}: no such folder; give the folder of a LlamaFactory or VLMEvalKit checkout")
    for upstream, signs in SIGNS.items():
        needed = (signs.version_file, signs.overwritten, *signs.others)
        if all((root / file).is_file() for file in needed):
            return Checkout(root, upstream, _version(root, upstream, signs))
    looked_for = " or ".join(f"{signs.version_file} ({upstream})" for upstream, signs in SIGNS.items())
    raise UniDPOError(
        f"{root}: neither a LlamaFactory nor a VLMEvalKit checkout (looked for {looked_for} and the files "
        "beside it); give the top folder of the sources, not an installed package"
    )


def _version(root: Path, upstream: Upstream, signs: Signs) -> str:
    stated = signs.version.search((root / signs.version_file).read_text(encoding="utf-8", errors="replace"))
    if stated is None:
        raise UniDPOError(f"{root / signs.version_file}: states no version; is this {upstream}?")
    version = stated.group(1)
    if not any(re.match(rf"{re.escape(tested)}(?![.\d])|{re.escape(tested)}\.dev", version) for tested in signs.tested):
        raise UniDPOError(
            f"{root}: this is {upstream} {version}; the overlay is tested with {' and '.join(signs.tested)} only"
        )
    return version
