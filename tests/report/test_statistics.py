"""Intervals, tests and corrections against scipy and numbers worked out by hand."""

import numpy as np
import pytest
from scipy import stats

from uni_dpo.report.statistics import holm, mean_standard_error, paired_difference


def test_standard_error_by_hand() -> None:
    assert mean_standard_error([0.0, 1.0, 1.0, 0.0]) == pytest.approx((1 / 3) ** 0.5 / 2)
    assert mean_standard_error([1.0]) == 0.0


def test_paired_difference_is_scipys() -> None:
    draw = np.random.default_rng(0)
    first, second = draw.integers(0, 2, 200).astype(float), draw.integers(0, 2, 200).astype(float)
    ours, theirs = paired_difference(first, second), stats.ttest_rel(second, first)
    interval = theirs.confidence_interval(0.95)
    assert ours.p == pytest.approx(theirs.pvalue)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    assert ours.value == pytest.approx((second - first).mean())


def test_the_smallest_difference_shows_in_four_of_five_draws() -> None:
    draw = np.random.default_rng(1)
    noise = draw.normal(0, 1, (2000, 100))
    smallest = paired_difference(np.zeros(100), noise[0]).smallest / np.std(noise[0], ddof=1)
    found = [paired_difference(np.zeros(100), row + smallest).p < 0.05 for row in noise]
    assert np.mean(found) == pytest.approx(0.8, abs=0.03)


def test_models_that_say_the_same_do_not_differ() -> None:
    same = paired_difference([0.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    assert paired_difference([0.0, 0.0], [1.0, 1.0]).p == 0
    with pytest.raises(ValueError, match="two rows"):
        paired_difference([0.0], [1.0])


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
