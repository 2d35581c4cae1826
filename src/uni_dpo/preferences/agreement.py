"""How far raters agree: Krippendorff's α.

Follows K. Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), for interval data and missing ratings.
"""

from collections.abc import Iterable, Sequence

import numpy as np


def krippendorff_alpha(units: Iterable[Sequence[float]]) -> float:
    """Agreement of ratings on an interval scale: 1 is perfect, 0 is chance, below is worse than chance.

    α = 1 − D_o / D_e, with squared differences: D_o averages them within units, D_e over all ratings.

    Args:
        units: for each thing that was rated, its ratings; units of fewer than two ratings do not count.

    Returns:
        α; NaN where no unit has two ratings; 1 where every rating is the same.
    """
    count, total, squares, within = 0, 0.0, 0.0, 0.0
    for ratings in units:
        if len(ratings) < 2:
            continue
        values = np.asarray(ratings, dtype=np.float64)
        # the sum of (a - b)² over ordered pairs is 2·(n·Σa² − (Σa)²)
        within += 2 * (len(values) * np.square(values).sum() - values.sum() ** 2) / (len(values) - 1)
        count += len(values)
        total += values.sum()
        squares += np.square(values).sum()
    if count < 2:
        return float("nan")
    expected = 2 * (count * squares - total**2) / (count * (count - 1))
    return 1.0 if expected <= 1e-12 else float(1 - within / count / expected)
