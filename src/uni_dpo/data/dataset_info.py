"""`dataset_info.json` as LlamaFactory reads it, and the columns of scores and of ranked answers that are ours.

Follows LlamaFactory's documented format (data/README.md, 0.9.4 and 0.9.5): where `columns` is given, a column
that it leaves out is not used; likewise `tags`.
"""

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uni_dpo.data.faults import PreferenceDataError, where_to_get
from uni_dpo.settings.losses import STOCK
from uni_dpo.settings.machine import is_true
from uni_dpo.storage.writing import holding, write_text

FILE_NAME = "dataset_info.json"
FORMATS = ("alpaca", "sharegpt", "openai")
SCORE_ROLES = ("score_chosen", "score_rejected", "scores")
"""What `columns` may name and LlamaFactory does not know; a name that it leaves out is the role's own."""
_HUB_KEYS = ("hf_hub_url", "ms_hub_url", "om_hub_url", "script_url", "cloud_file_name")


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column holds what; None where a dataset has no such column. Alpaca's defaults.

    `answers` is a list of rated answers in place of `chosen` and `rejected`, and `scores` that of their scores.
    `rejected_images` are those that the rejected answer sees in place of `images`.
    """

    prompt: str | None = "instruction"
    query: str | None = "input"
    response: str | None = "output"
    history: str | None = None
    messages: str | None = "conversations"
    system: str | None = None
    tools: str | None = None
    images: str | None = None
    videos: str | None = None
    audios: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    kto_tag: str | None = None
    score_chosen: str = "score_chosen"
    score_rejected: str = "score_rejected"
    answers: str | None = None
    scores: str = "scores"
    rejected_images: str | None = None


@dataclass(frozen=True, slots=True)
class Tags:
    """Names of the keys and roles in a list of messages; None where a dataset has no such role."""

    role_tag: str | None = "from"
    content_tag: str | None = "value"
    user_tag: str | None = "human"
    assistant_tag: str | None = "gpt"
    observation_tag: str | None = "observation"
    function_tag: str | None = "function_call"
    system_tag: str | None = "system"


OPENAI_TAGS = Tags("role", "content", "user", "assistant", "tool", "function", "system")
PAIR_COLUMNS = Columns(
    query=None, response=None, messages=None, system="system", history="history", images="images",
    videos="videos", chosen="chosen", rejected="rejected", rejected_images="rejected_images",
)  # fmt: skip
"""The columns of the pair record itself."""
RANKED_COLUMNS = replace(PAIR_COLUMNS, chosen=None, rejected=None, rejected_images=None, answers="answers")
"""The same with ranked answers."""


@dataclass(frozen=True, slots=True)
class DatasetEntry:
    """One dataset as `dataset_info.json` describes it.

    Attributes:
        name: its name there.
        path: the local file or folder; None where the dataset is elsewhere.
        elsewhere: for a dataset that is on a hub or made by a script: where; else None.
        formatting: alpaca, sharegpt or openai.
        ranking: whether it holds pairs.
        num_samples: how many rows LlamaFactory draws from it; None for all.
    """

    name: str
    path: Path | None
    elsewhere: str | None = None
    formatting: str = "alpaca"
    ranking: bool = False
    columns: Columns = Columns()
    tags: Tags = Tags()
    num_samples: int | None = None

    @property
    def ranked(self) -> bool:
        """Whether a row holds several rated answers, rather than two."""
        return self.columns.answers is not None

    @property
    def beside(self) -> Path | None:
        """The folder of the data, where image paths may start."""
        return None if self.path is None else self.path if self.path.is_dir() else self.path.parent


def pair_entry(path: str | Path) -> DatasetEntry:
    """Return the entry of a file that holds pair records under their own column names."""
    return DatasetEntry(Path(path).stem, Path(path), ranking=True, columns=PAIR_COLUMNS)


def load_dataset_info(folder: str | Path) -> dict[str, Any]:
    """Return the whole of a folder's `dataset_info.json`.

    Raises:
        PreferenceDataError: it is missing, or not a JSON object.
    """
    path = Path(folder) / FILE_NAME
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PreferenceDataError(
            f"{path}: cannot be opened ({error.strerror}); set dataset_dir to the folder that holds {FILE_NAME}"
        ) from None
    except ValueError as error:
        raise PreferenceDataError(f"{path}: is not JSON ({error})") from None
    if not isinstance(info, dict):
        raise PreferenceDataError(f"{path}: holds a {type(info).__name__}; an object of dataset entries belongs there")
    return info


def read_entry(name: str, folder: str | Path) -> DatasetEntry:
    """Return the entry `name` of `folder`'s `dataset_info.json`.

    Raises:
        PreferenceDataError: no such entry (near matches are named), or the entry is not well formed.
    """
    info = load_dataset_info(folder)
    if name not in info:
        near = difflib.get_close_matches(name, info, n=5, cutoff=0.5)
        hint = f"did you mean {', '.join(near)}?" if near else f"it has {', '.join(sorted(info)[:10]) or 'no entry'}"
        raise PreferenceDataError(f"{Path(folder) / FILE_NAME}: no dataset {name!r}; {hint}")
    return parse_entry(name, info[name], folder)


def check_named(settings: Mapping[str, Any]) -> None:
    """See that the datasets which the settings of a training name are there, before anything is imported.

    Raises:
        PreferenceDataError: there is no such entry or file; all of them are named.
    """
    folder = settings.get("dataset_dir", "data")
    if not isinstance(folder, str) or folder == "ONLINE" or folder.startswith("REMOTE:") or tokenized(settings):
        return
    if faults := dict.fromkeys(_faults_of_named(settings, folder)):
        raise PreferenceDataError("\n".join(faults))


def _faults_of_named(settings: Mapping[str, Any], folder: str) -> Iterator[str]:
    stage = settings.get("stage")
    for key in ("dataset", "eval_dataset"):
        names = settings.get(key) or []
        names = names.split(",") if isinstance(names, str) else names
        if not isinstance(names, list):
            yield f"{key}: the name of a dataset is expected, not {names!r}"
            continue
        for name in names:
            try:
                entry = read_entry(str(name).strip(), folder)
            except PreferenceDataError as error:
                yield str(error)
                continue
            if stage in ("dpo", "rm") and not (entry.ranking or entry.ranked):
                why = "learns from pairs, and this dataset has none; say `ranking: true` if it has"
                yield f"{key} {entry.name}: stage: {stage} {why}"
            if stage in ("pt", "sft", "ppo", "kto") and entry.ranking:
                why = "learns from answers, and this dataset has pairs (`ranking: true`); name another"
                yield f"{key} {entry.name}: stage: {stage} {why}"
            if entry.path is not None and (fault := _no_stream(settings)):
                yield fault
            if entry.path is not None and not entry.path.exists():
                advice = where_to_get(entry.path) or f"correct file_name in {Path(folder) / FILE_NAME}"
                yield f"{key} {entry.name}: there is no file {entry.path}; {advice}"


def _no_stream(settings: Mapping[str, Any]) -> str:
    """LlamaFactory parts the stream of a file among the workers, of which `uni_dpo` takes one where there is none."""
    stock = settings.get("pref_loss") in (None, *STOCK)
    if stock and is_true(settings.get("streaming")) and str(settings.get("dataloader_num_workers") or 0) == "0":
        return "streaming: with dataloader_num_workers: 0 a file would give no data; set it to 1"
    return ""


def tokenized(settings: Mapping[str, Any]) -> bool:
    """Tell whether a training reads rows that were tokenized before, and no data file."""
    path = settings.get("tokenized_path")
    return isinstance(path, str) and Path(path).is_dir()


def parse_entry(name: str, attributes: Any, folder: str | Path) -> DatasetEntry:
    """Return what an entry of `dataset_info.json` says, defaults filled in.

    Raises:
        PreferenceDataError: a value is of the wrong kind.
    """
    place = f"{Path(folder) / FILE_NAME}, {name!r}"
    if not isinstance(attributes, dict):
        raise PreferenceDataError(f"{place}: holds a {type(attributes).__name__}; an object belongs there")
    elsewhere = next((str(attributes[key]) for key in _HUB_KEYS if key in attributes), None)
    if elsewhere is None and not isinstance(attributes.get("file_name"), str):
        raise PreferenceDataError(f"{place}: has no file_name; name the file that holds the rows")
    formatting = attributes.get("formatting", "alpaca")
    if formatting not in FORMATS:
        raise PreferenceDataError(f"{place}, formatting: {formatting!r}; use {', '.join(FORMATS)}")
    columns = Columns(**_names(Columns, attributes.get("columns"), f"{place}, columns"))
    if columns.rejected_images and (columns.answers or not columns.images):
        other = "`answers`, which all see the same images" if columns.answers else "no `images`"
        raise PreferenceDataError(f"{place}, columns: `rejected_images` beside {other}; name `images` and two answers")
    return DatasetEntry(
        name=name,
        path=None if elsewhere is not None else Path(folder) / attributes["file_name"],
        elsewhere=elsewhere,
        formatting=formatting,
        ranking=bool(attributes.get("ranking", False)),
        columns=columns,
        tags=Tags(**_names(Tags, attributes.get("tags"), f"{place}, tags")),
        num_samples=attributes.get("num_samples"),
    )


def _names(kind: type[Columns] | type[Tags], given: object, place: str) -> dict[str, Any]:
    """The fields of `kind` as the file sets them; a name that it leaves out is None, or our own default."""
    if given is None:
        return {}
    if not isinstance(given, dict) or any(not isinstance(value, str | None) for value in given.values()):
        raise PreferenceDataError(f"{place}: {given!r}; an object of names belongs there")
    scores = {key: given[key] for key in SCORE_ROLES if given.get(key)}
    fields = [key for key in kind.__dataclass_fields__ if key not in SCORE_ROLES]
    return {key: given.get(key) for key in fields} | (scores if kind is Columns else {})


def register_entry(name: str, attributes: Mapping[str, Any], folder: str | Path) -> None:
    """Write the entry `name` into `folder`'s `dataset_info.json`; every other entry stays as it is.

    Raises:
        PreferenceDataError: the file is there and cannot be read.
    """
    path = Path(folder) / FILE_NAME
    with holding(path.with_name(f".{FILE_NAME}.lock"), str(path), patience=10.0):  # another's entry is not lost
        info = load_dataset_info(folder) if path.exists() else {}
        info[name] = dict(attributes)
        write_text(path, json.dumps(info, ensure_ascii=False, indent=2) + "\n")
