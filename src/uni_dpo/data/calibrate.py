"""Scores on one scale: each rater's own onto a stated range, and the settings that the result suggests."""

import math
from array import array
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.image_paths import leading
from uni_dpo.data.pair import read_score
from uni_dpo.data.tables.reading import one_split, shown_rows
from uni_dpo.data.tables.writing import keep_inputs, row_writer
from uni_dpo.errors import UniDPOError

Method = Literal["linear", "rank", "zscore"]
_SIGMAS = 3.0
"""Standard deviations on each side of the mean that the z-score mapping spreads over the range."""


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A setting for training that the scores suggest, and why."""

    name: str
    value: float
    reason: str


@dataclass
class Calibration:
    """What a calibration did.

    Attributes:
        ranges: rater → (lowest, highest, how many scores) before.
        agreement: Krippendorff's α between raters before and after; None where no row has several.
        suggestions: η and τ_good for the new scores.
    """

    output: Path
    rows: int = 0
    ranges: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    agreement: tuple[float, float] | None = None
    suggestions: list[Suggestion] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report, one line per fact."""
        lines = [f"rows: {self.rows:,}", f"output: {self.output}"]
        lines += [f"scores of {who}: {low:g} … {high:g} ({n:,})" for who, (low, high, n) in self.ranges.items()]
        if self.agreement is not None:
            lines.append("Krippendorff's α between raters: {:.3f} before, {:.3f} after".format(*self.agreement))
        return lines + [f"suggested {s.name}: {s.value:.3g}: {s.reason}" for s in self.suggestions]


def calibrate(
    source: str | Path,
    output: str | Path,
    *,
    method: Method = "linear",
    low: float = 0.0,
    high: float = 5.0,
    by: str | None = None,
    unit: str = "id",
    score_chosen: str = "score_chosen",
    score_rejected: str = "score_rejected",
) -> Calibration:
    """Map the scores of every rater onto `low` … `high`; the first ones stay as `raw_score_chosen/_rejected`.

    Each mapping is monotone: no pair changes its order. `linear` takes the rater's lowest score to `low` and the
    highest to `high`; `rank` takes a score to the share of the rater's scores below it (ties in the middle);
    `zscore` takes the rater's mean to the middle and ±3 standard deviations to the ends.

    Args:
        source, output: a file or folder of rows, and a .json, .jsonl or .parquet file.
        method: the mapping.
        low, high: ends of the new range.
        by: the column that names the rater or source; None treats all scores alike.
        unit: the column by which rows of several raters belong together, for the agreement.
        score_chosen, score_rejected: columns of the two answers' scores.

    Raises:
        PreferenceDataError: rows without finite scores, or without the column `by`.
    """
    if not (low < high and math.isfinite(high - low)):
        raise UniDPOError(f"range {low:g} … {high:g}: two finite numbers belong there, the lower one first")
    keep_inputs(output, one_split(source))
    columns = score_chosen, score_rejected
    scores = _collect(source, columns, by)
    mappings = {rater: _mapping(method, values, low, high) for rater, values in scores.items()}
    result = Calibration(Path(output), ranges={r: (min(v), max(v), len(v)) for r, v in scores.items()})
    units: dict[Any, list[tuple[float, float]]] = defaultdict(list)
    chosen, margins = array("d"), array("d")
    with row_writer(output) as writer:
        for row in map(leading(source, output), shown_rows(source, "Writing")):
            rater = str(row[by]) if by else "all"
            new = {column: mappings[rater](float(row[column])) for column in columns}
            if by and row.get(unit) is not None:
                for column in columns:
                    units[str(row[unit]), column].append((float(row[column]), new[column]))
            raw = {f"raw_{column}": row.get(f"raw_{column}", row[column]) for column in columns}
            writer.write(row | raw | new)
            chosen.append(new[score_chosen])
            margins.append(new[score_chosen] - new[score_rejected])
            result.rows += 1
    if any(len(ratings) > 1 for ratings in units.values()):
        before, after = (krippendorff_alpha([pair[at] for pair in each] for each in units.values()) for at in (0, 1))
        result.agreement = before, after
    result.suggestions = suggest(np.asarray(chosen), np.asarray(margins))
    return result


def suggest(chosen: np.ndarray, margins: np.ndarray) -> list[Suggestion]:
    """Return η and τ_good from the chosen scores and the margins (chosen − rejected) of a dataset."""
    suggestions = []
    positive = margins[margins > 0]
    if positive.size:
        median = float(np.median(positive))
        reason = f"a pair with the median margin ({median:.3g}) then has weight w_qual = 0.8, one without margin 0.5"
        suggestions.append(Suggestion("uni_dpo_qual_eta", math.log(4) / median, reason))
    if chosen.size:
        third = float(np.quantile(chosen, 1 / 3))
        share = float((chosen >= third).mean())
        reason = f"the better {share:.0%} of the chosen answers then count as good and the NLL term keeps them likely"
        suggestions.append(Suggestion("uni_dpo_tau_good", third, reason))
    return suggestions


def _collect(source: str | Path, columns: tuple[str, str], by: str | None) -> dict[str, array]:
    scores: dict[str, array] = defaultdict(lambda: array("d"))
    faults: list[Fault] = []
    for index, row in enumerate(shown_rows(source, "Reading")):
        found: list[Fault] = []
        values = [read_score(row, column, found) for column in columns]
        if by and row.get(by) is None:
            found.append(Fault("rater_missing", by, "no rater", "name one, or leave --by out"))
        faults += [replace(fault, row=index, file=Path(source)) for fault in found]
        if not found:
            scores[str(row[by]) if by else "all"].extend(value for value in values if value is not None)
    if faults:
        raise PreferenceDataError.of(faults)
    if not scores:
        raise PreferenceDataError(f"{source}: holds no rows")
    return scores


def _mapping(method: Method, values: array, low: float, high: float) -> Callable[[float], float]:
    ordered = sorted(values)
    middle, span = (low + high) / 2, high - low
    if ordered[0] == ordered[-1]:
        return lambda score: middle
    if method == "linear":
        width = ordered[-1] - ordered[0]
        return lambda score: low + span * ((score - ordered[0]) / width)
    if method == "rank":
        count = len(ordered)
        return lambda score: low + span * (bisect_left(ordered, score) + bisect_right(ordered, score)) / (2 * count)
    mean, deviation = float(np.mean(values)), float(np.std(values))
    return lambda score: min(high, max(low, middle + span / 2 * (score - mean) / (_SIGMAS * deviation)))


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float:
    """Return agreement of ratings on an interval scale: 1 is perfect, 0 is chance, below is worse than chance.

    α = 1 − D_o / D_e, with squared differences: D_o averages them within units, which are the ratings of one thing, and
    D_e over all. Units of fewer than two ratings do not count. NaN where none is left; 1 where all are the same.
    """
    rated = [np.asarray(ratings, dtype=np.float64) for ratings in units if len(ratings) > 1]
    if not rated:
        return math.nan
    together = np.concatenate(rated)
    # the mean of (a − b)² over pairs of different ratings is twice their variance
    within = sum(len(values) * values.var(ddof=1) for values in rated) / len(together)
    overall = together.var(ddof=1)
    return 1.0 if overall <= 5e-13 else float(1 - within / overall)
