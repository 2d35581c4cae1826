"""`uni-dpo data check`: everything about one dataset in one pass, and its good rows on request."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from uni_dpo.data.checks.audit import Audit, Auditor
from uni_dpo.data.checks.datasets import refused_by_llamafactory, scale_warnings, whole_faults
from uni_dpo.data.checks.fix import rejects_path, sorting
from uni_dpo.data.checks.lengths import LengthCounter, Lengths
from uni_dpo.data.checks.rows import CheckedRow, RowChecker
from uni_dpo.data.dataset_info import FILE_NAME, DatasetEntry, read_entry
from uni_dpo.data.faults import KEPT_FAULTS, Fault, PreferenceDataError
from uni_dpo.data.image_paths import leading
from uni_dpo.data.image_state import OddImages
from uni_dpo.data.images import ImageChecker, image_paths
from uni_dpo.data.ranking import ALL_PAIRS, PairChoice
from uni_dpo.data.register import detect_entry
from uni_dpo.data.tables.reading import counted, source_files
from uni_dpo.data.tables.writing import keep_inputs
from uni_dpo.data.videos import VideoChecker, has_decoder
from uni_dpo.storage.writing import finite


@dataclass
class CheckReport:
    """What a check found.

    Attributes:
        dataset: what was checked.
        entry: how its rows were read.
        rows: rows read.
        usable: rows without a fault.
        pairless: usable rows of ranked answers of which no two make a pair.
        faults: the first 1,000 faults of rows.
        fault_counts: kind → how many.
        whole: the faults of files and of the dataset as a whole, which no row shows.
        columns: every column that a row has.
        warnings: what its owner should know, one line each.
        stopped: why the reading ended before the end of the data; empty where it did not.
        audit: what the usable rows are like.
        lengths: their tokens, where a model was named.
        odd_images: the images of usable rows that a viewer shows in another way than a model sees them.
        repairs: what was put right in the file of good rows → how often.
        fixed: the file of good rows, and the file of the others with the reasons.
    """

    dataset: str
    entry: DatasetEntry
    rows: int = 0
    usable: int = 0
    pairless: int = 0
    faults: list[Fault] = field(default_factory=list)
    fault_counts: Counter[str] = field(default_factory=Counter)
    whole: list[Fault] = field(default_factory=list)
    columns: set[str] = field(default_factory=set)
    warnings: list[str] = field(default_factory=list)
    stopped: str = ""
    audit: Audit = field(init=False)
    lengths: Lengths | None = None
    odd_images: OddImages = field(default_factory=OddImages)
    repairs: Counter[str] = field(default_factory=Counter)
    fixed: tuple[Path, Path] | None = None

    @property
    def faultless(self) -> bool:
        """Whether every row can be trained on."""
        return not self.fault_counts

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; NaN becomes None."""
        found: dict[str, Any] = finite(
            {
                "dataset": self.dataset,
                "formatting": self.entry.formatting,
                "columns": {name: column for name, column in asdict(self.entry.columns).items() if column},
                "rows": self.rows,
                "usable": self.usable,
                "pairless": self.pairless,
                "fault_counts": dict(self.fault_counts),
                "faults": [asdict(fault) | {"file": str(fault.file)} for fault in self.whole + self.faults],
                "warnings": self.warnings,
                "stopped": self.stopped,
                "audit": asdict(self.audit),
                "lengths": asdict(self.lengths) if self.lengths else None,
                "repairs": dict(self.repairs),
                "fixed": [str(path) for path in self.fixed] if self.fixed else None,
            }
        )
        return found


def find_dataset(dataset: str, dataset_dir: str | Path | None) -> tuple[DatasetEntry, str | Path | None]:
    """Return the entry of a file, a folder or a name in `dataset_info.json`, and the folder where its images start.

    Raises:
        PreferenceDataError: there is no such file and no such entry.
    """
    if Path(dataset).exists():
        return detect_entry(dataset), None
    if dataset_dir is None or not (Path(dataset_dir) / FILE_NAME).is_file():
        raise PreferenceDataError(
            f"{dataset}: no such file; to name a dataset of a {FILE_NAME}, give its folder with --dataset-dir"
        )
    return read_entry(dataset, dataset_dir), dataset_dir


def check_dataset(
    dataset: str | DatasetEntry,
    *,
    dataset_dir: str | Path | None = None,
    media_dir: str | Path | None = None,
    scores_required: bool = True,
    check_images: bool = True,
    whole_videos: bool = False,
    qual_eta: float = 0.7,
    tau_good: float = 2.5,
    lengths: LengthCounter | None = None,
    fix: str | Path | None = None,
    limit: int | None = None,
    choice: PairChoice = ALL_PAIRS,
) -> CheckReport:
    """Check a dataset and say what it is like, in one pass and flat memory: what `data check` and training ask alike.

    Args:
        dataset: a file, a folder, or a name in `dataset_dir`'s `dataset_info.json`; or what it says of that name.
        dataset_dir: the folder of `dataset_info.json`.
        media_dir: where image paths start, and which none may leave. Without it they start in `dataset_dir` for a
            name, then beside the data, and may also be absolute.
        scores_required: whether a row without scores is at fault.
        check_images: whether to open the images and videos.
        whole_videos: whether to decode videos to their end, as training does, and not their first frames alone.
        qual_eta: the η for which w_qual is reported.
        tau_good: the τ_good for which the share of pairs above it is reported; −∞ where none is asked for.
        lengths: counts tokens; None leaves them out.
        fix: where to write the rows without fault, repaired where it is safe; the others go beside it with the reasons.
        limit: how many rows to read, as LlamaFactory's `max_samples`; None for all.
        choice: which pairs of ranked answers count.

    Raises:
        PreferenceDataError: nothing can be read, or `fix` is what is read.
    """
    known = dataset if isinstance(dataset, DatasetEntry) else None
    entry, start = (known, dataset_dir) if known else find_dataset(str(dataset), dataset_dir)
    if entry.path is None:
        raise PreferenceDataError(f"{entry.name}: is at {entry.elsewhere}, not on this machine; download it first")
    report = CheckReport(entry.name if known else str(dataset), entry)
    files = source_files(entry.path)
    auditor = Auditor(qual_eta, tau_good)
    with ExitStack() as stack:
        images = videos = sorter = None
        paths = image_paths(media_dir or start, media_dir, entry.beside)
        if check_images:
            images = stack.enter_context(ImageChecker(paths).running())
            videos = VideoChecker(images, whole=whole_videos) if entry.columns.videos and has_decoder() else None
        checker = RowChecker(entry, images, videos, scores_required, choice)
        if fix is not None:
            report.fixed = Path(fix), rejects_path(Path(fix))
            for output in report.fixed:
                keep_inputs(output, files)
            beside = media_dir is None and paths.folders == (entry.beside,)
            lead = leading(entry.path if beside else fix, fix)  # else paths stay as they are
            sorter = stack.enter_context(sorting(Path(fix), checker, lead))
            report.repairs = sorter.repairs
        rows = islice(_checked_rows(files, checker, report), limit if entry.num_samples is None else None)
        for row in counted(rows, f"Checking {entry.name}"):
            _note(report, row)
            for taker in (auditor, lengths, sorter):
                if taker is not None:
                    taker.add(row)
    report.audit = auditor.result()
    _judge_whole(report, files)
    report.lengths = lengths.result() if lengths is not None else None
    return report


def _checked_rows(files: list[Path], checker: RowChecker, report: CheckReport) -> Iterator[CheckedRow]:
    for file in files:
        try:
            yield from checker.rows(file)
        except PreferenceDataError as error:
            fault = error.faults[0] if error.faults else Fault("file_unreadable", "", str(error), "")
            report.stopped = str(fault)
            report.whole.append(fault)


def _note(report: CheckReport, row: CheckedRow) -> None:
    report.rows += 1
    report.usable += not row.faults
    report.pairless += not row.faults and not row.pairs
    report.columns.update(row.row or ())
    for name, why in () if row.faults else row.odd_images:
        report.odd_images.add(why, f"row {row.index}, {name}")
    report.fault_counts.update(fault.kind for fault in row.faults)
    report.faults += row.faults[: max(0, KEPT_FAULTS - len(report.faults))]


def _judge_whole(report: CheckReport, files: list[Path]) -> None:
    """Faults and warnings that only the whole dataset shows."""
    audit, entry = report.audit, report.entry
    assert entry.path is not None
    if not report.rows and not report.whole:
        report.whole.append(Fault("no_rows", "", "holds no rows", "", file=entry.path))
    if report.usable and report.pairless == report.usable:
        advice = "give two answers of a row unlike scores, or choose more pairs (uni_dpo_pairs, uni_dpo_min_gap)"
        report.whole.append(Fault("no_pairs", "", "no row makes a pair", advice, file=entry.path))
    report.whole += whole_faults(entry, report.columns, audit)
    report.fault_counts.update(fault.kind for fault in report.whole)
    for what, rows in (
        ("the chosen score is below the rejected one", audit.inverted),
        ("the two answers are identical", audit.identical),
        ("a text holds a mark of a chat template, as <|im_end|>, which ends or begins a turn there", audit.ended),
    ):
        if rows.count:
            report.warnings.append(f"{what} in {rows.count:,} of {report.rows:,} rows ({rows})")
    if report.pairless:
        report.warnings.append(f"no two answers make a pair in {report.pairless:,} of {report.rows:,} rows")
    report.warnings += report.odd_images.warnings()
    report.warnings += scale_warnings(audit)
    if reason := refused_by_llamafactory(entry.path, files):
        report.warnings.append(reason)
    if audit.margins.count and audit.above_tau_good == 0:
        top = audit.score_chosen.quantiles[-1]
        report.warnings.append(f"no chosen score reaches tau_good = {audit.tau_good:g} (the highest is {top:g})")
