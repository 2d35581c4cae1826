"""The look at the training data before a model is loaded: all faults of all datasets, in one run."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from uni_dpo.data.checks.datasets import refused_by_llamafactory, swapped_scores, unseen_columns
from uni_dpo.data.checks.rows import CheckedRow, check_file
from uni_dpo.data.dataset_info import DatasetEntry, read_entry
from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.images import ImageChecker
from uni_dpo.data.tables.reading import source_files

_KEPT_FAULTS = 1_000
"""Faults of one dataset that are remembered; the rest is counted."""


@dataclass(frozen=True)
class Preflight:
    """What the preflight saw in data that can be trained on.

    Attributes:
        rows: how many rows were checked.
        scored: how many of them have both scores.
        chosen_range: lowest and highest score of a chosen answer; None where no row has scores.
        rejected_range: likewise for the rejected answers.
        inverted: rows whose chosen score is below the rejected one.
        identical: rows whose two answers are the same.
        warnings: what the user should know, one line each.
        unchecked: datasets that are not local files.
    """

    rows: int = 0
    scored: int = 0
    chosen_range: tuple[float, float] | None = None
    rejected_range: tuple[float, float] | None = None
    inverted: int = 0
    identical: int = 0
    warnings: list[str] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)


def preflight(
    dataset_names: Sequence[str],
    dataset_dir: str | Path,
    media_dir: str | Path | None = None,
    *,
    scores_required: bool = True,
    tau_good: float | None = None,
    max_samples: int | None = None,
    check_images: bool = True,
) -> Preflight:
    """Check every row of the datasets that a training run names, as LlamaFactory would read them.

    Args:
        dataset_names: names in `dataset_dir`'s `dataset_info.json`.
        dataset_dir: the folder with `dataset_info.json`, or "ONLINE" or "REMOTE:…" as LlamaFactory has it.
        media_dir: where image paths start, and then none may leave it. Without it, or where it is `dataset_dir`
            (LlamaFactory's default), they start there and may also be absolute.
        scores_required: whether the loss needs scores.
        tau_good: the score from which the NLL term is active; None where the loss has none.
        max_samples: LlamaFactory's own limit of rows per dataset.
        check_images: whether to open the images.

    Raises:
        PreferenceDataError: with the first 20 faults and the count of all.
    """
    if str(dataset_dir) == "ONLINE" or str(dataset_dir).startswith("REMOTE:"):
        return _summary([], list(dataset_names), tau_good)
    unchecked, tallies = [], []
    root = None if media_dir is None or Path(media_dir) == Path(dataset_dir) else media_dir
    with ImageChecker(media_dir or dataset_dir, root).running() as images:
        for name in dataset_names:
            tally = _Tally(name)
            tallies.append(tally)
            try:
                entry = read_entry(name, dataset_dir)
                if entry.path is None:
                    unchecked.append(name)
                    continue
                rows = _rows_of(entry, images if check_images else None, scores_required, max_samples)
                for row in tqdm(rows, desc=f"Checking {name}", unit=" rows", mininterval=1.0, delay=2.0):
                    tally.add(row)
                if not tally.rows:
                    raise PreferenceDataError(f"{entry.path}: holds no rows")
                tally.faults += unseen_columns(entry, tally.columns)
            except PreferenceDataError as error:
                tally.faults += error.faults or [Fault("dataset", "", str(error), "")]
    for tally in tallies:
        tally.faults += swapped_scores(tally.name, len(tally.inverted), tally.scored)
    faults = [fault for tally in tallies for fault in tally.faults]
    if faults:
        raise PreferenceDataError.of(faults, total=len(faults) + sum(tally.dropped for tally in tallies))
    return _summary(tallies, unchecked, tau_good)


def _rows_of(
    entry: DatasetEntry, images: ImageChecker | None, scores_required: bool, max_samples: int | None
) -> Iterator[CheckedRow]:
    assert entry.path is not None
    if not entry.ranking:
        raise PreferenceDataError(f'dataset {entry.name!r}: is not marked as pairs; add "ranking": true to its entry')
    files = source_files(entry.path)
    if reason := refused_by_llamafactory(entry.path, files):
        raise PreferenceDataError(reason)
    left = max_samples if entry.num_samples is None else None
    for file in files:
        checked = 0
        for row in check_file(file, entry, images=images, scores_required=scores_required, limit=left):
            yield row
            checked += 1
        left = None if left is None else left - checked


class _Tally:
    """What one dataset adds up to, row by row."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows = 0
        self.faults: list[Fault] = []
        self.dropped = 0
        self.columns: set[str] = set()
        self.scored = 0
        self.chosen = (math.inf, -math.inf)
        self.rejected = (math.inf, -math.inf)
        self.inverted: list[int] = []
        self.identical: list[int] = []

    def add(self, row: CheckedRow) -> None:
        self.rows += 1
        self.columns.update(row.row or ())
        kept = row.faults[: max(0, _KEPT_FAULTS - len(self.faults))]
        self.faults += kept
        self.dropped += len(row.faults) - len(kept)
        pair = row.pair
        if pair is None:
            return
        if pair.chosen == pair.rejected:
            self.identical.append(row.index)
        if pair.score_chosen is not None and pair.score_rejected is not None:
            self.scored += 1
            self.chosen = _widened(self.chosen, pair.score_chosen)
            self.rejected = _widened(self.rejected, pair.score_rejected)
            if pair.score_chosen < pair.score_rejected:
                self.inverted.append(row.index)

    def warnings(self) -> list[str]:
        """One line for each thing that is odd and can be trained on."""
        return [
            f"{self.name}: {what} in {len(rows):,} of {self.rows:,} rows ({_examples(rows)})"
            for what, rows in (
                ("the chosen score is below the rejected one", self.inverted),
                ("the two answers are identical", self.identical),
            )
            if rows
        ]


def _widened(known: tuple[float, float], value: float) -> tuple[float, float]:
    return min(known[0], value), max(known[1], value)


def _examples(rows: Sequence[int]) -> str:
    named = ", ".join(str(row) for row in rows[:5])
    return f"row{'s' if len(rows) > 1 else ''} {named}{', …' if len(rows) > 5 else ''}"


def _summary(tallies: Sequence[_Tally], unchecked: list[str], tau_good: float | None) -> Preflight:
    scored = [tally for tally in tallies if tally.scored]
    warnings = [line for tally in tallies for line in tally.warnings()]
    warnings += [f"{name}: is not a local file and was not checked" for name in unchecked]
    chosen = rejected = None
    if scored:
        chosen = min(t.chosen[0] for t in scored), max(t.chosen[1] for t in scored)
        rejected = min(t.rejected[0] for t in scored), max(t.rejected[1] for t in scored)
        if tau_good is not None and chosen[1] < tau_good:
            warnings.append(
                f"no chosen score reaches tau_good = {tau_good:g} (they lie in {chosen[0]:g} … {chosen[1]:g}): "
                "the NLL term can never be active"
            )
    return Preflight(
        rows=sum(t.rows for t in tallies),
        scored=sum(t.scored for t in tallies),
        chosen_range=chosen,
        rejected_range=rejected,
        inverted=sum(len(t.inverted) for t in tallies),
        identical=sum(len(t.identical) for t in tallies),
        warnings=warnings,
        unchecked=unchecked,
    )
