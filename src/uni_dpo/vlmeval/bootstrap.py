"""How sure a difference between two models is: a paired bootstrap over what they were both asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

REPEATS = 2000
_AT_ONCE = 4_000_000
"""Random counts held in memory at a time."""


@dataclass(frozen=True)
class Outcomes:
    """A benchmark's score as a function of sums over units that are drawn together.

    A unit is a row, or the rows that are scored as one (MME's two questions about an image).
    """

    units: Sequence[str]
    parts: Any
    """Float64 array, units × parts. Each part is summed over the units."""
    form: str
    """`sum`: the score is the sum of the one part. `f1`: parts are true positives, false positives, false negatives."""
    strata: Sequence[str] | None = None
    """Units are redrawn within their stratum only; within all of them when `None`."""

    def score(self) -> float:
        """The benchmark's score."""
        return float(_combine(self.parts.sum(axis=0, keepdims=True), self.form)[0])


def difference_interval(
    baseline: Outcomes, other: Outcomes, *, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of `other` minus `baseline`.

    Both scores are computed on the same redrawn units, so that what is hard for both cancels
    (Efron and Tibshirani 1993, chapter 13).

    Args:
        baseline: outcomes of one model.
        other: outcomes of the other on the same units.
        seed: of the draws; the same seed gives the same interval.
        level: share of the resampled differences that lie inside.

    Raises:
        ValueError: the two were not asked the same.
    """
    import numpy as np

    if list(baseline.units) != list(other.units) or baseline.form != other.form:
        raise ValueError("the two models were not scored on the same units")
    generator = np.random.default_rng(seed)
    strata = np.asarray(baseline.strata if baseline.strata is not None else [""] * len(baseline.units))
    both = np.concatenate([baseline.parts, other.parts], axis=1)
    sums = np.zeros((REPEATS, both.shape[1]))
    for stratum in sorted(set(strata.tolist())):
        sums += _resampled_sums(both[strata == stratum], generator)
    width = baseline.parts.shape[1]
    differences = _combine(sums[:, width:], other.form) - _combine(sums[:, :width], baseline.form)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(differences, [tail, 100 - tail])
    return float(low), float(high)


def _resampled_sums(parts: Any, generator: Any) -> Any:
    import numpy as np

    count = len(parts)
    step = max(1, _AT_ONCE // count)
    drawn = [
        generator.multinomial(count, np.full(count, 1 / count), size=min(step, REPEATS - start)) @ parts
        for start in range(0, REPEATS, step)
    ]
    return np.concatenate(drawn)


def _combine(sums: Any, form: str) -> Any:
    import numpy as np

    if form == "sum":
        return sums[:, 0]
    true_positive, false_positive, false_negative = sums.T
    denominator = 2 * true_positive + false_positive + false_negative
    return 100 * np.divide(2 * true_positive, denominator, out=np.zeros_like(denominator), where=denominator > 0)
