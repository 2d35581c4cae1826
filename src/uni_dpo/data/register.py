"""Making a file of pairs known to LlamaFactory."""

import os
from collections import Counter, defaultdict
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from uni_dpo.data.columns import IMAGE_COLUMNS, VIDEO_COLUMNS
from uni_dpo.data.dataset_info import (
    FILE_NAME,
    OPENAI_TAGS,
    DatasetEntry,
    load_dataset_info,
    parse_entry,
    register_entry,
)
from uni_dpo.data.faults import Fault, PreferenceDataError, encodable, shown
from uni_dpo.data.tables.reading import Row, Unreadable, numbered_rows, source_files, unreadable_fault


def register_file(name: str, file: str | Path, dataset_dir: str | Path, *, replace: bool = False) -> dict[str, Any]:
    """Write the entry of a file of pairs, whose columns are detected, into `dataset_info.json`, and return it.

    Args:
        name: what the dataset is called from now on.
        dataset_dir: the folder of `dataset_info.json`, which is made where it is missing.
        replace: whether an entry of that name may be replaced.

    Raises:
        PreferenceDataError: the file does not look like pairs, the name is taken, or a configuration cannot name it.
    """
    folder = Path(dataset_dir)
    if not name.strip() or name != name.strip() or "," in name:
        raise PreferenceDataError(
            f"{name!r} cannot be a dataset's name: configurations name several with commas between them, and leave out "
            "the blanks around them; choose another name"
        )
    if not replace and (folder / FILE_NAME).is_file() and name in load_dataset_info(folder):
        raise PreferenceDataError(f"{folder / FILE_NAME}: has a dataset {name!r}; choose another name, or --replace")
    path = Path(file).absolute()
    if not encodable(f"{path}{name}"):
        raise PreferenceDataError(f"{shown(str(path))}: {FILE_NAME} is UTF-8, and a name is not; rename it")
    inside = path.is_relative_to(folder.absolute())
    file_name = os.path.relpath(path, folder.absolute()) if inside else str(path)
    attributes = {"file_name": file_name} | detect_attributes(file)
    folder.mkdir(parents=True, exist_ok=True)
    register_entry(name, attributes, folder)
    return attributes


_LOOKED_AT = 100
_CANDIDATES = {
    "prompt": ("instruction", "prompt", "question"),
    "query": ("input",),
    "messages": ("conversations", "messages", "prompt"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "score_chosen": ("score_chosen", "chosen_score", "chosen_rating", "chosen-rating", "chosen_reward"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected_rating", "rejected-rating", "rejected_reward"),
    "images": IMAGE_COLUMNS,
    "rejected_images": ("rejected_images",),
    "videos": VIDEO_COLUMNS,
    "system": ("system",),
    "history": ("history",),
    "answers": ("answers", "responses"),
    "scores": ("scores",),
}
_ASKING = ("prompt", "query", "history")
"""Roles of columns that a question in messages has not."""
_OPENAI_KEYS = {"role", "content"}


def detect_attributes(path: str | Path) -> dict[str, Any]:
    """Return what an entry of `dataset_info.json` says about a file, all but its `file_name`.

    Raises:
        PreferenceDataError: the file cannot be read, or its rows do not look like pairs.
    """
    rows = _first_rows(path)
    kinds = _column_kinds(rows)
    have = ", ".join(kinds)
    found = {role: next((name for name in names if name in kinds), None) for role, names in _CANDIDATES.items()}
    messages = next((name for name in _CANDIDATES["messages"] if kinds.get(name) is list), None)
    message: Any = None  # an example, where the question is no text
    if not {"chosen", "rejected"} <= kinds.keys():
        if not _holds_ranked_answers(rows, found):
            raise PreferenceDataError(
                f"{path}: its columns ({have}) hold no `chosen` and `rejected`, nor `answers` with their `scores`; "
                "`uni-dpo data convert` reads other formats, and with --map other names (--map chosen=COLUMN)"
            )
        roles = ["answers", "scores", "images", "videos", "system"]
        if messages is not None:
            message = next((row[messages][0] for row in rows if row.get(messages)), {})
    elif kinds["chosen"] is list:
        answer = next(row["chosen"] for row in rows if isinstance(row.get("chosen"), list))
        if not all(isinstance(part, dict) for part in answer):
            raise PreferenceDataError(f"{path}: `chosen` holds {shown(answer)}; one text or one message belongs there")
        raise PreferenceDataError(
            f"{path}: `chosen` holds a list of messages; `uni-dpo data convert --format trl` reads it"
        )
    else:
        roles = [role for role in _CANDIDATES if role not in (*_ASKING, "messages", "answers", "scores")]
        if kinds["chosen"] is dict:
            message = next(row["chosen"] for row in rows if isinstance(row.get("chosen"), dict))
            if messages is None or not (message.keys() >= {"from", "value"} or message.keys() >= _OPENAI_KEYS):
                raise PreferenceDataError(
                    f"{path}: `chosen` holds messages, but no column of its ({have}) holds the prompt's"
                )
    if message is None and found["prompt"] is None:
        raise PreferenceDataError(f"{path}: its columns ({have}) hold no question; rename one to `instruction`")
    asking = _ASKING if message is None else ()
    columns = {role: name for role in (*asking, *roles) if (name := found[role])}
    if message is None:
        return {"ranking": True, "formatting": "alpaca", "columns": columns}
    openai = isinstance(message, dict) and message.keys() >= _OPENAI_KEYS
    layout = {"formatting": "openai", "tags": asdict(OPENAI_TAGS)} if openai else {"formatting": "sharegpt"}
    return {"ranking": True, **layout, "columns": {"messages": messages} | columns}


def _holds_ranked_answers(rows: list[Row], found: dict[str, str | None]) -> bool:
    """Whether most rows have a list of answers with scores beside them, or in them."""
    answers, scores = found["answers"], found["scores"]

    def ranked(row: Row) -> bool:
        listed = row.get(str(answers))
        if not isinstance(listed, list):
            return False
        inside = bool(listed) and all(isinstance(answer, dict) and "score" in answer for answer in listed)
        return inside or isinstance(row.get(str(scores)), list)

    return 2 * sum(map(ranked, rows)) > len(rows)


def _first_rows(path: str | Path) -> list[Row]:
    """The first rows, and of JSON each later one that has a known column before any other: text may stand in front."""
    rows: list[Row] = []
    unreadable: list[Fault] = []
    waited_for = {name for names in _CANDIDATES.values() for name in names}
    try:
        for file in source_files(path):
            all_told_first = not file.suffix.lower().startswith(".json")
            for index, line, row in islice(numbered_rows(file), _LOOKED_AT if all_told_first else None):
                if isinstance(row, Unreadable):
                    unreadable += [] if unreadable else [unreadable_fault(row, index, file, line)]
                elif len(rows) < _LOOKED_AT or not waited_for.isdisjoint(row):
                    rows.append(row)
                    waited_for -= row.keys()
    except PreferenceDataError:
        if not rows:
            raise
    if not rows and unreadable:
        raise PreferenceDataError.of(unreadable)
    if not rows:
        raise PreferenceDataError(f"{path}: holds no rows that can be read")
    return rows


def detect_entry(path: str | Path) -> DatasetEntry:
    """Return the entry that fits a file which no `dataset_info.json` describes."""
    path = Path(path)
    attributes = detect_attributes(path) | {"file_name": path.name}
    return parse_entry(path.stem, attributes, path.parent)


def _column_kinds(rows: list[Row]) -> dict[str, type]:
    """Column → the type of most of its values."""
    kinds: dict[str, Counter[type]] = defaultdict(Counter)
    for row in rows:
        for name, value in row.items():
            kinds[name].update(() if value is None else (type(value),))
    return {name: max(counts, key=lambda kind: counts[kind], default=type(None)) for name, counts in kinds.items()}
