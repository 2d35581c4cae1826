"""What is wrong with a preference file, said so that its owner can correct it."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from uni_dpo.errors import UniDPOError

SHOWN_FAULTS = 20
KEPT_FAULTS = 1_000
"""Faults of one file that are remembered; all are counted."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong at one place.

    Attributes:
        kind: a short stable name, such as `score_nan`; counts and tests go by it.
        field: the column (or `column[i]`) that holds it.
        found: what was there.
        advice: what to do.
        row: 0-based position in `file`; None where the fault is the whole file's.
        file: the file that was read.
        line: the line of `file` in which the row starts, from 1; None where the file has no lines.
        id: what the row calls itself.
    """

    kind: str
    field: str
    found: str
    advice: str
    row: int | None = None
    file: Path | None = None
    line: int | None = None
    id: str | int | None = None

    @property
    def place(self) -> str:
        """The row's number, line and id, as a message names them."""
        more = [f"line {self.line}"] if self.line is not None else []
        more += [f"id {shown(self.id)}"] if self.id is not None else []
        row = [f"row {self.row}"] if self.row is not None else []
        return " ".join([*row, *([f"({', '.join(more)})"] if more else [])])

    def __str__(self) -> str:
        place = ", ".join(filter(None, (str(self.file or ""), self.place, self.field)))
        text = f"{place}: {self.found}" if place else self.found
        return f"{text}; {self.advice}" if self.advice else text


class PreferenceDataError(UniDPOError):
    """The preference data cannot be used as it is.

    Attributes:
        faults: every fault that was found, or the one that stopped the reading.
    """

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = list(faults)

    @classmethod
    def of(cls, faults: Sequence[Fault], *, total: int | None = None) -> "PreferenceDataError":
        """Return the error that lists the first 20 of `faults` and says how many there are."""
        total = len(faults) if total is None else total
        count = "1 fault" if total == 1 else f"{total:,} faults"
        lines = [f"the preference data has {count}:", *(f"  {fault}" for fault in faults[:SHOWN_FAULTS])]
        if total > SHOWN_FAULTS:
            lines.append(f"  … and {total - SHOWN_FAULTS:,} more")
        return cls("\n".join(lines), faults)


def shown(value: object, limit: int = 60) -> str:
    """Return a value as an error message shows it: its repr, cut in the middle when long."""
    if isinstance(value, str | bytes) and len(value) > limit:
        head, tail = value[: limit // 2], value[-limit // 4 :]
        return f"{head!r} … {tail!r}"
    text = repr(value)
    return text if len(text) <= limit * 2 else f"{text[:limit]} … {text[-limit // 2 :]}"


def encodable(text: str) -> bool:
    """Tell whether UTF-8 has room for a text: not for surrogates that stand alone."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


HOME = "https://huggingface.co/datasets/psp-dada/Uni-DPO"
IMAGES = "https://huggingface.co/datasets/yifanzhang114/MM-RLHF"
FILES = {
    "uni_dpo_image_only_mcq_short_long_50k.json": "Multimodal",
    "Train_Qwen_2_5_math_7B.jsonl": "Math",
}
"""File → its folder in the data set at `HOME`."""


def where_to_get(path: object) -> str | None:
    """Say where a file of the published data, pairs or an image of MM-RLHF, comes from; None for any other file."""
    file = PurePath(str(path))
    if file.name in FILES:
        return f"it is published: download it from the folder {FILES[file.name]} of {HOME}, to {file.parent}"
    if "MM-RLHF" in file.parts:
        return (
            f"unpack long.zip, short.zip and mcq.zip of {IMAGES}, then `uni-dpo data rebase-images FILE --root MM-RLHF`"
        )
    return None


def stand_in(beginning: bytes) -> tuple[str, str] | None:
    """Return what a file is in place of data, and what to do; None where its beginning says nothing of that."""
    if beginning.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file", "fetch it with `git lfs pull`"
    if beginning.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not the file", "download the file itself"
    return None
