"""Intervals against a naive resampling and against arithmetic."""

import numpy as np
import pytest

from uni_dpo.report.statistics import REPEATS, Outcomes, difference_interval


def mean_of(hits: list[int]) -> Outcomes:
    parts = 100 * np.array(hits, dtype="float64").reshape(-1, 1) / len(hits)
    return Outcomes([str(i) for i in range(len(hits))], parts, "sum")


def test_score_is_the_mean_or_the_f1() -> None:
    assert mean_of([1, 0, 0, 1]).score() == 50
    cases = np.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], dtype="float64")
    assert Outcomes(list("abcde"), cases, "f1").score() == pytest.approx(100 * 2 * 2 / (2 * 2 + 1 + 1))
    assert Outcomes(list("ab"), np.zeros((2, 3)), "f1").score() == 0


def test_the_same_answers_differ_by_nothing() -> None:
    model = mean_of([1, 0, 1, 1, 0, 0, 1])
    assert difference_interval(model, model) == (0, 0)


def test_a_model_better_on_every_row_is_better_on_every_draw() -> None:
    assert difference_interval(mean_of([0] * 9), mean_of([1] * 9)) == pytest.approx((100, 100))


def test_the_interval_is_that_of_a_naive_paired_bootstrap() -> None:
    generator = np.random.default_rng(7)
    first, second = (generator.random(60) < 0.5).astype(int), (generator.random(60) < 0.7).astype(int)
    low, high = difference_interval(mean_of(first.tolist()), mean_of(second.tolist()), seed=3)
    draws = []
    for _ in range(4 * REPEATS):
        rows = generator.integers(0, 60, size=60)
        draws.append(100 * (second[rows].mean() - first[rows].mean()))
    naive_low, naive_high = np.percentile(draws, [2.5, 97.5])
    assert low == pytest.approx(naive_low, abs=2.5)
    assert high == pytest.approx(naive_high, abs=2.5)
    assert low < 100 * (second.mean() - first.mean()) < high


def test_strata_keep_their_size() -> None:
    # One stratum is all right, the other all wrong: redrawn within them, the score never moves.
    parts = np.array([[10.0], [10.0], [0.0], [0.0]])
    units, strata = list("abcd"), ["x", "x", "y", "y"]
    nothing = Outcomes(units, np.zeros((4, 1)), "sum", strata)
    assert difference_interval(nothing, Outcomes(units, parts, "sum", strata)) == (20, 20)
    low, high = difference_interval(Outcomes(units, np.zeros((4, 1)), "sum"), Outcomes(units, parts, "sum"))
    assert low < 20 < high


def test_the_seed_decides() -> None:
    first, second = mean_of([1, 0, 0, 1, 0] * 9), mean_of([0, 1, 1, 1, 0] * 9)
    assert difference_interval(first, second, seed=1) == difference_interval(first, second, seed=1)
    assert difference_interval(first, second, seed=1) != difference_interval(first, second, seed=2)


def test_models_asked_different_rows_are_not_compared() -> None:
    with pytest.raises(ValueError, match="same units"):
        difference_interval(mean_of([1, 0]), mean_of([1, 0, 1]))
