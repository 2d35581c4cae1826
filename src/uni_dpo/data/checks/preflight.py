"""Training data before a model is loaded: all faults of all datasets in one run, and the table that training reads.

Readers of JSON and CSV guess a column's type from its values, and stop where the values differ: ids that are
numbers in some rows, an image that is a text in one row and a list in the others, no image in the first thousand
rows. What the checks took is therefore handed over as an Arrow file with one type per column, which are ours, and a
file for every image.
"""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from uni_dpo.data.checks.check import CheckReport, check_dataset
from uni_dpo.data.dataset_info import DatasetEntry, read_entry
from uni_dpo.data.faults import Fault, PreferenceDataError, shown
from uni_dpo.data.images import ImageFolder, ImagePaths, image_source
from uni_dpo.data.pair import listed, listed_images
from uni_dpo.data.ranking import ALL_PAIRS, PairChoice, answer_scores, answer_text
from uni_dpo.data.tables.reading import Row, iter_rows, source_files
from uni_dpo.storage.identity import digest
from uni_dpo.storage.writing import replacing


@dataclass(frozen=True)
class Preflight:
    """What the preflight saw in data that can be trained on.

    Attributes:
        rows: how many rows were checked.
        scored: how many pairs of them have both scores.
        warnings: what the user should know, one line each.
    """

    rows: int = 0
    scored: int = 0
    warnings: list[str] = field(default_factory=list)


def preflight(
    dataset_names: Sequence[str],
    dataset_dir: str | Path,
    media_dir: str | Path | None = None,
    *,
    scores_required: bool = True,
    tau_good: float | None = None,
    max_samples: int | None = None,
    choice: PairChoice = ALL_PAIRS,
) -> Preflight:
    """Check every row of the datasets that a training run names, as LlamaFactory would read them.

    Args:
        dataset_names: names in `dataset_dir`'s `dataset_info.json`.
        dataset_dir: the folder with `dataset_info.json`, or "ONLINE" or "REMOTE:…" as LlamaFactory has it.
        media_dir: where image paths start, and then none may leave it. Without it, or where it is `dataset_dir`
            (LlamaFactory's default), they start there, or beside the data, and may also be absolute.
        scores_required: whether the loss needs scores.
        tau_good: the score from which the NLL term is active; None where the loss has none.
        max_samples: LlamaFactory's own limit of rows per dataset.
        choice: which pairs of ranked answers count.

    Raises:
        PreferenceDataError: with the first 20 faults and the count of all.
    """
    if str(dataset_dir) == "ONLINE" or str(dataset_dir).startswith("REMOTE:"):
        return _summary([], list(dataset_names), tau_good)
    root = None if media_dir is None or Path(media_dir) == Path(dataset_dir) else media_dir
    unchecked: list[str] = []
    reports: list[CheckReport] = []
    faults: list[Fault] = []
    total = 0
    for name in dataset_names:
        try:
            entry = read_entry(name, dataset_dir)
            if entry.path is None:
                unchecked.append(name)
                continue
            report = check_dataset(
                entry,
                dataset_dir=dataset_dir,
                media_dir=root,
                scores_required=scores_required,
                tau_good=-math.inf,
                limit=max_samples,
                choice=choice,
            )
        except PreferenceDataError as error:
            faults += error.faults or [Fault("dataset", "", str(error), "")]
            total += max(1, len(error.faults))
        else:
            reports.append(report)
            faults += report.faults + report.whole
            total += report.fault_counts.total()
    if faults:
        raise PreferenceDataError.of(faults, total=total)
    return _summary(reports, unchecked, tau_good)


def _summary(reports: Sequence[CheckReport], unchecked: list[str], tau_good: float | None) -> Preflight:
    scored = [report.audit for report in reports if report.audit.margins.count]
    warnings = [f"{report.dataset}: {line}" for report in reports for line in report.warnings]
    warnings += [f"{name}: is not a local file and was not checked" for name in unchecked]
    highest = max((audit.score_chosen.quantiles[-1] for audit in scored), default=None)
    if highest is not None and tau_good is not None and highest < tau_good:
        lowest = min(audit.score_chosen.quantiles[0] for audit in scored)
        warnings.append(
            f"no chosen score reaches tau_good = {tau_good:g} (they lie in {lowest:g} … {highest:g}): "
            "the NLL term can never be active"
        )
    return Preflight(sum(report.rows for report in reports), sum(audit.margins.count for audit in scored), warnings)


_VERSION = 2
_ROWS_AT_ONCE = 1_000


def training_table(entry: DatasetEntry, folder: str | Path, paths: ImagePaths, limit: int | None = None) -> Path:
    """Write the rows of a dataset for training, once for every state of its files.

    Args:
        entry: a dataset of pairs on this machine, whose rows have been checked.
        folder: where tables are kept.
        paths: where the image paths of the rows lead.
        limit: how many rows to write; None for all.

    Returns:
        An Arrow file with the columns that `entry` names, and no others.

    Raises:
        PreferenceDataError: a row cannot be read, or an image of it is not there.
    """
    assert entry.path is not None
    files = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in source_files(entry.path)]
    places = [str(folder.absolute()) for folder in (*paths.folders, paths.root or Path())]
    name = digest([_VERSION, files, asdict(entry), places, limit])
    table = Path(folder) / f"{name}.arrow"
    if not table.exists():
        columns = _columns(entry, ImageFolder(Path(folder) / "images", paths), paths)
        with replacing(table) as temporary:
            rows = islice(iter_rows(entry.path), limit)
            plain = (_plain_answers(row, entry) for row in rows) if entry.ranked else rows
            _write(temporary, plain, columns, entry.path)
    return table


Column = tuple[Any, Callable[[Any], Any]]
"""The Arrow type of a column, and the function that brings a value to it."""


def _columns(entry: DatasetEntry, folder: ImageFolder, paths: ImagePaths) -> dict[str, Column]:
    """What the table holds: column → its type, and how a value is brought to it."""
    import pyarrow as pa

    names, tags = entry.columns, entry.tags
    message = pa.struct([(str(tags.role_tag), pa.string()), (str(tags.content_tag), pa.string())])
    texts = ["prompt", "query", "response"] if entry.formatting == "alpaca" else []
    texts += ["system", "tools", "kto_tag"]
    found: dict[str | None, Column] = {getattr(names, role): (pa.string(), _as_text) for role in texts}
    answer: Column = (pa.string(), _as_text)
    if entry.formatting == "alpaca":
        found[names.history] = (pa.list_(pa.list_(pa.string())), listed)
    else:
        answer = (message, lambda value: _as_message(value, entry))
        found[names.messages] = (pa.list_(message), lambda value: [_as_message(item, entry) for item in value])
    if entry.ranked:
        found[names.answers] = (pa.list_(pa.string()), list)
        found[names.scores] = (pa.list_(pa.float64()), lambda scores: [*map(float, scores)])
    else:
        found |= {names.chosen: answer, names.rejected: answer}
        found |= {names.score_chosen: (pa.float64(), float), names.score_rejected: (pa.float64(), float)}
    files = (pa.list_(pa.string()), lambda value: [_as_file(item, folder, paths) for item in listed(value)])
    found |= {names.images: files, names.rejected_images: files}
    if names.videos:
        found[names.videos] = _videos(entry, paths)
    return {name: column for name, column in found.items() if name is not None}


def _videos(entry: DatasetEntry, paths: ImagePaths) -> Column:
    """Files, or each video a list of its frames: what the first row with a video has, and then every row."""
    import pyarrow as pa

    assert entry.path is not None
    rows = (listed_images(row, entry.columns.videos) for row in iter_rows(entry.path))
    first = next((videos[0] for videos in rows if videos), "")

    def place(video: Any, of_frames: bool) -> Any:
        if of_frames and isinstance(video, list):
            return [place(frame, of_frames=False) for frame in video]
        if of_frames or not isinstance(video, str):
            raise TypeError("a file's videos are all files, or all lists of the paths of frames")
        return str(paths.find(video).absolute())

    of_frames = isinstance(first, list)
    kind = pa.list_(pa.string()) if of_frames else pa.string()
    return pa.list_(kind), lambda value: [place(video, of_frames) for video in listed(value)]


def _plain_answers(row: Row, entry: DatasetEntry) -> Row:
    """A row whose ranked answers are texts, with their scores beside them."""
    columns = entry.columns
    texts = [answer_text(answer) for answer in row[str(columns.answers)]]
    return row | {str(columns.answers): texts, columns.scores: answer_scores(row, columns)}


def _as_text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _as_message(message: Row, entry: DatasetEntry) -> Row:
    role, content = str(entry.tags.role_tag), str(entry.tags.content_tag)
    calls = message.get("tool_calls")
    if entry.formatting == "openai" and calls:
        text = json.dumps([call["function"] for call in calls], ensure_ascii=False)
        return {role: entry.tags.function_tag, content: text}
    return {role: message[role], content: message[content]}


def _as_file(image: Any, folder: ImageFolder, paths: ImagePaths) -> str:
    source = image_source(image, paths)
    return str(folder.put(source)) if isinstance(source, bytes) else str(source.absolute())


def _write(file: Path, rows: Iterator[Row], columns: dict[str, Column], source: Path) -> None:
    import pyarrow as pa

    schema = pa.schema([(name, kind) for name, (kind, _) in columns.items()])
    count = 0
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        while chunk := list(islice(rows, _ROWS_AT_ONCE)):
            typed = [_typed(row, columns, f"{source}, row {count + at}") for at, row in enumerate(chunk)]
            writer.write_batch(pa.RecordBatch.from_pylist(typed, schema))
            count += len(chunk)


def _typed(row: Row, columns: dict[str, Column], place: str) -> Row:
    typed = {}
    for name, (_, change) in columns.items():
        try:
            typed[name] = change(row.get(name))
        except (TypeError, ValueError, KeyError) as error:
            raise PreferenceDataError(f"{place}, {name}: {shown(row.get(name))} cannot be used ({error})") from None
    return typed
