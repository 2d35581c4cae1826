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


@dataclass(frozen=True)
class PairedDifference:
    """The mean difference of values of the same rows.

    Attributes:
        value: second minus first.
        low, high: the 95 % interval by Student's distribution.
        p: two-sided, of the paired t-test (Student 1908); 1 where no row differs.
        smallest: the difference that so many rows, as unlike as these, show with a power of 80 % at 5 %.
    """

    value: float
    low: float
    high: float
    p: float
    smallest: float


def mean_standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean: the sample's deviation over √n; 0 for fewer than two values."""
    count = len(values)
    return float(np.std(np.asarray(values, np.float64), ddof=1) / math.sqrt(count)) if count > 1 else 0.0


def mean_interval(grades: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean grade over questions (Efron and Tibshirani 1993, chapter 13).

    Args:
        grades: one per question, from 0 to 1: the mean over its samples.
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


def paired_difference(first: Sequence[float], second: Sequence[float]) -> PairedDifference:
    """Compare two models row by row.

    Args:
        first, second: the values of the same rows in the same order, at least two.

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
    return PairedDifference(value, value - reach, value + reach, p, (QUANTILE + POWER) * error)


def holm(ps: Sequence[float]) -> list[float]:
    """Adjust p-values for being several, by Holm's step-down method (Holm 1979); the order stays."""
    order = sorted(range(len(ps)), key=lambda place: ps[place])
    adjusted = [0.0] * len(ps)
    highest = 0.0
    for rank, place in enumerate(order):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        adjusted[place] = highest
    return adjusted
