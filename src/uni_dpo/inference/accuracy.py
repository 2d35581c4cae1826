"""What the grades of a file of questions say: the mean with its interval, and pass@k."""

from collections.abc import Sequence
from math import comb

REPEATS = 2000


def mean_interval(grades: Sequence[float], *, seed: int = 0, level: float = 0.95) -> tuple[float, float]:
    """Return the percentile interval of the mean grade over questions (Efron and Tibshirani 1993, chapter 13).

    Args:
        grades: one per question, from 0 to 1: the mean over its samples.
        seed: of the redrawn questions.
        level: share of the resampled means that lie inside.

    Raises:
        ValueError: there are no grades.
    """
    import numpy as np

    if not grades:
        raise ValueError("no grades")
    values = np.asarray(grades, dtype=np.float64)
    generator = np.random.default_rng(seed)
    means = [generator.choice(values, len(values)).mean() for _ in range(REPEATS)]
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(means, [tail, 100 - tail])
    return float(low), float(high)


def pass_at(k: int, samples: Sequence[Sequence[float]]) -> float:
    """Estimate how probably at least one of k samples is right, without bias (arXiv 2107.03374, eq. 1).

    Args:
        k: from 1 to the number of samples of every question.
        samples: the grades of each question's samples; 1 is right, anything less is wrong.

    Raises:
        ValueError: a question has fewer than k samples, or there are none.
    """
    if not samples or k < 1 or any(len(grades) < k for grades in samples):
        raise ValueError(f"pass@{k} needs questions with at least {k} samples each")
    chances = []
    for grades in samples:
        wrong = sum(grade < 1 for grade in grades)
        chances.append(1 - comb(wrong, k) / comb(len(grades), k))
    return sum(chances) / len(chances)


def accuracy_lines(samples: Sequence[Sequence[float]], *, seed: int = 0) -> list[str]:
    """Say how right the answers are, a line per figure.

    Args:
        samples: the grades of each question's samples, each from 0 to 1.
        seed: of the interval.
    """
    means = [sum(grades) / len(grades) for grades in samples]
    mean = sum(means) / len(means)
    low, high = mean_interval(means, seed=seed)
    fewest = min(map(len, samples))
    total = f"{sum(means):g} of {len(samples):,} with a label"
    drawn = "" if fewest == 1 else f", mean of {fewest} samples"
    lines = [f"accuracy: {mean:.1%} ({total}{drawn}; 95 % interval {low:.1%} to {high:.1%})"]
    ks = [k for k in (1, 2, 4, 8, 16, 32, 64, 128) if k < fewest] + [fewest]
    return lines + ([f"pass@{k}: {pass_at(k, samples):.1%}" for k in ks] if fewest > 1 else [])
