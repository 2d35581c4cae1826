"""Mean, interval and pass@k against numbers worked out by hand and by trying all draws."""

from itertools import combinations

import pytest

from uni_dpo.inference.predict import accuracy_lines, pass_at
from uni_dpo.report.statistics import mean_interval


def test_pass_at_k_is_the_share_of_draws_that_hold_a_right_sample():
    samples = [[1.0, 0.0, 0.0, 1.0, 0.0], [0.0] * 5, [1.0] * 5, [0.5, 1.0, 0.0, 0.0, 0.0]]
    for k in range(1, 6):
        expected = [
            sum(any(grade == 1 for grade in draw) for draw in combinations(grades, k))
            / sum(1 for _ in combinations(grades, k))
            for grades in samples
        ]
        assert pass_at(k, samples) == pytest.approx(sum(expected) / len(samples))
    # By hand: two right of five, pass@2 = 1 − C(3, 2) / C(5, 2) = 0.7.
    assert pass_at(2, samples[:1]) == pytest.approx(0.7)


@pytest.mark.parametrize(("k", "samples"), [(0, [[1.0]]), (2, [[1.0], [1.0, 0.0]]), (1, [])])
def test_pass_at_k_needs_as_many_samples(k, samples):
    with pytest.raises(ValueError, match="samples"):
        pass_at(k, samples)


def test_the_interval_is_the_normal_one_where_there_are_many_questions():
    grades = [1.0] * 300 + [0.0] * 700
    low, high = mean_interval(grades)
    assert (low, high) == pytest.approx(
        (0.3 - 1.96 * (0.21 / 1000) ** 0.5, 0.3 + 1.96 * (0.21 / 1000) ** 0.5), abs=3e-3
    )
    assert mean_interval(grades) == (low, high)
    assert mean_interval([1.0, 1.0]) == (1.0, 1.0)
    with pytest.raises(ValueError, match="no grades"):
        mean_interval([])


def test_one_sample_has_no_pass_at_k():
    assert accuracy_lines([(1.0,), (0.0,)]) == ["accuracy: 50.0% (1 of 2 with a label; 95 % interval 0.0% to 100.0%)"]


def test_questions_with_unlike_numbers_of_samples_are_compared_at_the_fewest():
    lines = accuracy_lines([(1.0, 0.0, 0.0), (1.0, 1.0)])
    assert [line.split(":")[0] for line in lines] == ["accuracy", "pass@1", "pass@2"]
