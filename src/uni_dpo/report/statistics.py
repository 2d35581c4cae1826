"""How sure a score and a difference are: standard errors, paired t-tests, Holm's correction, what could have shown."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

QUANTILE = 1.959963984540054
"""Of the normal distribution, for 95 % intervals."""
POWER = 0.8416212335729143
"""Quantile of the normal distribution for a power of 80 %."""
REPEATS = 2000
"""Samples of a bootstrap."""
_AT_ONCE = 4_000_000
"""Random counts held in memory at a time."""


@dataclass(frozen=True)
class Difference:
    """A model against another; what cannot be told is None.

    Attributes:
        value: second minus first.
        low, high: the 95 % interval.
        p: two-sided, of the paired t-test (Student 1908); 1 where no row differs.
        smallest: the difference that so many rows, as unlike as these, show with a power of 80 % at 5 %.
    """

    value: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    smallest: float | None = None

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.value:+.2f}"
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def mean_standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean: the sample's deviation over √n; 0 for fewer than two values."""
    count = len(values)
    return float(np.std(np.asarray(values, np.float64), ddof=1) / math.sqrt(count)) if count > 1 else 0.0


def mean_interval(grades: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean grade over questions (Efron and Tibshirani 1993, chapter 13).

    Args:
        grades: one per question, at least one, from 0 to 1: the mean over its samples.
        seed: of the redrawn questions.

    Raises:
        ValueError: there are no grades.
    """
    if not grades:
        raise ValueError("no grades")
    values = np.asarray(grades, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = [generator.choice(values, len(values)).mean() for _ in range(REPEATS)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@dataclass(frozen=True)
class Outcomes:
    """A benchmark's score as a function of sums over units that are drawn together.

    A unit is a row, or the rows that are scored as one (MME's two questions about an image).
    """

    units: Sequence[str]
    parts: np.ndarray
    """Float64 array, units × parts. Each part is summed over the units."""
    form: str
    """`sum`: the score is the sum of the one part. `f1`: parts are true positives, false positives, false negatives."""
    strata: Sequence[str] | None = None
    """Units are redrawn within their stratum only; within all of them when `None`."""

    def score(self) -> float:
        """Return the benchmark's score."""
        return float(_combine(self.parts.sum(axis=0, keepdims=True), self.form)[0])

    def values(self) -> dict[str, float]:
        """Return each unit's own value, of which the score is the mean; none where it is no mean over units."""
        if self.form != "sum" or self.strata is not None:
            return {}
        return dict(zip(self.units, (self.parts[:, 0] * len(self.units)).tolist(), strict=True))


def difference_interval(baseline: Outcomes, other: Outcomes, *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of `other` minus `baseline`; the same seed gives the same interval.

    Both scores are computed on the same redrawn units, so that what is hard for both cancels
    (Efron and Tibshirani 1993, chapter 13).

    Raises:
        ValueError: the two were not asked the same.
    """
    if list(baseline.units) != list(other.units) or baseline.form != other.form:
        raise ValueError("the two models were not scored on the same units")
    generator = np.random.default_rng(seed)
    strata = np.asarray(baseline.strata or [""] * len(baseline.units))
    both = np.concatenate([baseline.parts, other.parts], axis=1)
    sums = np.zeros((REPEATS, both.shape[1]))
    for stratum in sorted(set(strata.tolist())):
        sums += _resampled_sums(both[strata == stratum], generator)
    width = baseline.parts.shape[1]
    differences = _combine(sums[:, width:], other.form) - _combine(sums[:, :width], baseline.form)
    low, high = np.percentile(differences, [2.5, 97.5])
    return float(low), float(high)


def _resampled_sums(parts: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    count = len(parts)
    step = max(1, _AT_ONCE // count)
    drawn = [
        generator.multinomial(count, np.full(count, 1 / count), size=min(step, REPEATS - start)) @ parts
        for start in range(0, REPEATS, step)
    ]
    return np.concatenate(drawn)


def _combine(sums: np.ndarray, form: str) -> np.ndarray:
    if form == "sum":
        return sums[:, 0]
    true_positive, false_positive, false_negative = sums.T
    denominator = 2 * true_positive + false_positive + false_negative
    return 100 * np.divide(2 * true_positive, denominator, out=np.zeros_like(denominator), where=denominator > 0)


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare two models by the values of the same rows in the same order, at least two; Student's interval.

    Raises:
        ValueError: they are not as many, or fewer than two.
    """
    from scipy import stats

    differences = np.asarray(second, np.float64) - np.asarray(first, np.float64)
    count = len(differences)
    if count < 2:
        raise ValueError("a paired difference needs at least two rows")
    value, error = float(differences.mean()), mean_standard_error(differences.tolist())
    reach = float(stats.t.ppf(0.975, count - 1)) * error
    p = float(2 * stats.t.sf(abs(value) / error, count - 1)) if error > 0 else float(value == 0)
    return Difference(value, value - reach, value + reach, p, (QUANTILE + POWER) * error)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust p-values for being several, by Holm's step-down method (Holm 1979); the order stays."""
    values = np.asarray(ps, np.float64)
    order = np.argsort(values, kind="stable")
    highest = np.maximum.accumulate(np.arange(len(ps), 0, -1) * values[order])
    values[order] = np.minimum(1.0, highest)
    return values.tolist()
