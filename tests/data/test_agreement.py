import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from uni_dpo.data.calibrate import krippendorff_alpha


def test_by_hand() -> None:
    """Ratings 1, 2 | 3, 3. D_o = (1 + 1) / 4 = 1/2; D_e = 2 · (1 + 4 + 4 + 1 + 1 + 0) / (4 · 3) = 11/6; α = 8/11."""
    assert krippendorff_alpha([[1, 2], [3, 3]]) == pytest.approx(8 / 11)


def test_by_hand_with_a_missing_rating_and_three_raters() -> None:
    """Ratings 1, 1, 2 | 4, 4 | 9 (does not count). D_o = (2 · (0 + 1 + 1) / 2) / 5 = 2/5.

    D_e over 1, 1, 2, 4, 4: unordered squares 0 + 1 + 9 + 9 + 1 + 9 + 9 + 4 + 4 + 0 = 46; 2 · 46 / 20 = 4.6.
    """
    assert krippendorff_alpha([[1, 1, 2], [4, 4], [9]]) == pytest.approx(1 - 0.4 / 4.6)


def test_the_ends() -> None:
    assert krippendorff_alpha([[1, 1], [5, 5]]) == 1
    assert krippendorff_alpha([[2, 2], [2, 2]]) == 1
    assert math.isnan(krippendorff_alpha([[1], [2]]))
    assert krippendorff_alpha([[1, 5], [5, 1]]) < 0


@given(st.lists(st.lists(st.integers(0, 9), min_size=2, max_size=4), min_size=2, max_size=6))
def test_equals_the_double_sum(units) -> None:
    values = [value for unit in units for value in unit]
    n = len(values)
    observed = sum(sum((a - b) ** 2 for a in unit for b in unit) / (len(unit) - 1) for unit in units) / n
    expected = sum((a - b) ** 2 for a in values for b in values) / (n * (n - 1))
    assert krippendorff_alpha(units) == pytest.approx(1 - observed / expected if expected else 1.0)


def test_no_agreement_beyond_chance_is_near_zero() -> None:
    ratings = np.random.default_rng(0).integers(1, 6, size=(4000, 2))
    assert abs(krippendorff_alpha(ratings)) < 0.05
