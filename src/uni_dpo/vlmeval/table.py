"""A TSV of questions, checked row by row before VLMEvalKit sees it.

VLMEvalKit asserts without a message, reads "None" as a missing value, and runs `eval` on cells that look
like lists. So a file that is not the published one, bit by bit, is read and checked here.
"""

import ast
import builtins
import io
import os
import re
import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from uni_dpo.data.image_state import BrokenImageError
from uni_dpo.data.images import ImagePaths
from uni_dpo.errors import UniDPOError
from uni_dpo.vlmeval.cells import image_cell, read_frame

Row = Mapping[Any, Any]
Check = Callable[[Row], str | None]
REFERENCE_LENGTH = 64
"""An `image` cell up to this long names the row whose image it shares (VLMEvalKit's rule)."""

_ADDRESS = re.compile(r"[a-z][a-z\d+.-]*:", re.IGNORECASE)
_NO_LIST = "image_path begins with [ but is not a list of paths"
_READ_AS_MISSING = {"None", "NA", "N/A", "nan", "NaN", "null", "NULL", "n/a", "<NA>"}


@dataclass(frozen=True)
class Table:
    """The rows that passed, and why the others did not."""

    frame: pd.DataFrame
    kind: str
    faults: Mapping[str, str]
    """Index → which row it is, and what is wrong with it."""


def read_own_table(path: Path, kind: str | None, image_root: Path | None) -> Table:
    """Read and check a user's own TSV.

    Args:
        path: columns `question`, `answer`, `image` (base64 or a data URL) or `image_path`, for MCQ `A`, `B`, …;
            optionally `index`, `category`, `hint`.
        kind: MCQ, Y/N or VQA; found out from columns and answers when `None`.
        image_root: relative image paths start here and none may leave it; by default they start in the file's folder.

    Raises:
        UniDPOError: the file is missing, is no table, lacks a column, or has no usable row.
    """
    frame = read_frame(path)
    if "index" not in frame:
        frame.insert(0, "index", [str(number) for number in range(len(frame))])
    _need(frame, ("question", "answer"), path)
    if "image" not in frame and "image_path" not in frame:
        raise UniDPOError(f"{path}: no column image (base64) or image_path")
    kind = kind or _kind_of(frame)
    if kind == "MCQ":
        _need(frame, ("A", "B"), path)
    answer_fault = {"MCQ": _mcq_fault, "Y/N": _yes_no_fault, "VQA": _vqa_fault}[kind]
    paths = ImagePaths((image_root or path.parent,), image_root)
    image_fault = _image_check(frame) if "image" in frame else partial(_path_fault, paths=paths)
    faults = _faults(frame, _question_fault, answer_fault, image_fault)
    good = _without(frame, faults, path)
    if "image" not in frame:
        good["image_path"] = [_resolved(cell.strip(), paths) for cell in good["image_path"]]
    if kind == "MCQ":
        good["answer"] = good["answer"].str.strip().str.upper()
    elif kind == "Y/N":
        good["answer"] = good["answer"].str.strip().str.capitalize()
    return Table(good, kind, _named(faults, frame))


def read_benchmark_table(path: Path, kind: str) -> Table:
    """Read and check a file in the form of a benchmark; the cells come back as VLMEvalKit itself would read them.

    Raises:
        UniDPOError: the file lacks a column or has no usable row.
    """
    frame = read_frame(path)
    _need(frame, ("index", "question", "answer"), path)
    if kind == "MCQ":
        frame["answer"] = [_capital(row) or row["answer"] for row in frame.to_dict("records")]
    checks: list[Check] = [_question_fault, _answer_fault]
    if "image" in frame:
        checks.append(_image_check(frame))
    elif "image_path" in frame:
        checks.append(_path_list_fault)
    faults = _faults(frame, *checks)
    written = io.StringIO()
    frame.to_csv(written, sep="\t", index=False)
    as_vlmevalkit_reads = pd.read_csv(io.StringIO(written.getvalue()), sep="\t")
    return Table(_without(as_vlmevalkit_reads, faults, path), kind, _named(faults, frame))


def listed(cell: str) -> list[str]:
    """Return the items of a list written in the cell, or the cell itself: the answers that count as right, paths."""
    return [str(item) for item in ast.literal_eval(cell)] if cell.startswith("[") else [cell]


def _kind_of(frame: pd.DataFrame) -> str:
    if "A" in frame and "B" in frame:
        return "MCQ"
    given = {answer.strip().lower() for answer in frame["answer"]} - {""}
    return "Y/N" if given and given <= {"yes", "no"} else "VQA"


def _need(frame: pd.DataFrame, columns: tuple[str, ...], path: Path) -> None:
    missing = [column for column in columns if column not in frame]
    if missing:
        raise UniDPOError(f"{path}: no column {', '.join(missing)}; it has {', '.join(map(str, frame.columns))}")


def _faults(frame: pd.DataFrame, *checks: Check) -> dict[int, str]:
    """The first fault of each row that has one, by its position."""
    faults: dict[int, str] = {}
    seen: set[str] = set()
    for position, row in enumerate(frame.to_dict("records")):
        if row["index"] in seen:
            faults[position] = "the index stands in an earlier row too"
        elif fault := next(filter(None, (check(row) for check in checks)), None):
            faults[position] = fault
        seen.add(row["index"])
    return faults


def _named(faults: Mapping[int, str], frame: pd.DataFrame) -> dict[str, str]:
    indices = list(frame["index"])
    return {indices[at]: f"row {at + 1} (index {indices[at]}): {faults[at]}" for at in sorted(faults)}


def _without(frame: pd.DataFrame, faults: Mapping[int, str], path: Path) -> pd.DataFrame:
    good = frame[[position not in faults for position in range(len(frame))]].reset_index(drop=True)
    if not len(good):
        first = min(faults)
        raise UniDPOError(f"{path}: no row can be used; row {first + 1}: {faults[first]}")
    return good


def _question_fault(row: Row) -> str | None:
    if not row["question"].strip():
        return "no question"
    return None if row["answer"].strip() else "no answer"


def _options(row: Row) -> dict[str, str]:
    return {letter: row[letter] for letter in string.ascii_uppercase if row.get(letter, "").strip()}


def _capital(row: Row) -> str | None:
    """The letter of an option that the answer is, in capitals; `None` where a small one may be an option's text."""
    answer, options = row["answer"].strip(), _options(row)
    if answer in options:
        return str(answer)
    texts = {text.strip() for letter, text in options.items() if letter != answer.upper()}
    return answer.upper() if answer.upper() in options and answer not in texts else None


def _mcq_fault(row: Row) -> str | None:
    options = _options(row)
    for letter, option in options.items():
        if option in _READ_AS_MISSING:
            return f"option {letter} is {option!r}, which VLMEvalKit reads back as an empty cell; word it otherwise"
    if _capital(row) is None:
        return f"answer is {row['answer']!r}; it must be the letter of an option, one of {', '.join(options)}"
    return None


def _yes_no_fault(row: Row) -> str | None:
    return None if row["answer"].strip().lower() in ("yes", "no") else f"answer is {row['answer']!r}, not yes or no"


def _vqa_fault(row: Row) -> str | None:
    try:
        return None if listed(row["answer"]) else "the list of answers is empty"
    except (ValueError, SyntaxError, TypeError):
        return f"answer begins with [ but is not a list of texts: {row['answer'][:60]!r}"


def _answer_fault(row: Row) -> str | None:
    """An answer that VLMEvalKit's `eval` would run as code."""
    try:
        tree = ast.parse(row["answer"].strip(), mode="eval")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None
    called = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    runs = any(not isinstance(function, ast.Name) or hasattr(builtins, function.id) for function in called)
    return "the answer is Python code, which VLMEvalKit would run" if runs else None


def _image_check(frame: pd.DataFrame) -> Check:
    """Leave the base64 alone of data URLs, and return the check of the images."""
    frame["image"] = [image_cell(cell) for cell in frame["image"]]
    whole = {index for index, cell in zip(frame["index"], frame["image"], strict=True) if len(cell) > REFERENCE_LENGTH}

    def fault(row: Row) -> str | None:
        cell = row["image"].strip()
        if not cell:
            return "no image"
        if cell.startswith("["):
            if _paths(cell) is None:
                return "image begins with [ but is not a list of base64 texts"
        elif _ADDRESS.match(cell) and cell not in whole:
            return f"image is {cell[:40]!r}: write its bytes in base64, or the path of a file in column image_path"
        elif len(cell) <= REFERENCE_LENGTH and cell not in whole:
            return f"image is {cell[:40]!r}: neither base64 nor the index of a row with an image"
        paths = _paths(row.get("image_path", ""))
        if paths is None:
            return _NO_LIST
        outside = [path for path in paths if Path(path).is_absolute() or ".." in Path(path).parts]
        return f"image_path {outside[0]!r} leaves the image folder" if outside else None

    return fault


def _paths(cell: str) -> list[str] | None:
    """The paths in a cell, one or a list of them; `None` where it only looks like a list."""
    try:
        return listed(cell) if cell else []
    except (ValueError, SyntaxError, TypeError):
        return None


def _path_list_fault(row: Row) -> str | None:
    return _NO_LIST if _paths(row["image_path"]) is None else None


def _resolved(cell: str, paths: ImagePaths) -> str:
    found = [os.path.normpath(paths.find(path).absolute()) for path in _paths(cell) or []]
    return repr(found) if cell.startswith("[") else found[0]


def _path_fault(row: Row, paths: ImagePaths) -> str | None:
    found = _paths(row["image_path"].strip())
    if not found:
        return "no image_path, or a list of them that is none"
    try:
        for path in found:
            paths.find(path)
    except BrokenImageError as broken:
        return f"image_path: {broken}"
    return None


def safe_name(text: str) -> str:
    """Return `text` as part of a file name."""
    return re.sub(r"[^\w.-]+", "-", text)
