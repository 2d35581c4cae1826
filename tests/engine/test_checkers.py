import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uni_dpo.engine.asking import Check, FirstTokenChecker, Template, probability_of_yes, word_forms
from uni_dpo.engine.records import Aside
from uni_dpo.models.backends import Failure


def test_all_casings_with_and_without_space():
    assert word_forms("yes") == ("yes", "Yes", "YES", " yes", " Yes", " YES")


def test_probability_of_yes_by_hand():
    logprobs = {"yes": math.log(0.3), "no": math.log(0.1)}
    assert probability_of_yes(logprobs) == pytest.approx(0.75)
    assert probability_of_yes({"yes": 0.0, "no": -math.inf}) == 1.0
    assert probability_of_yes({"yes": -math.inf, "no": -0.5}) == 0.0
    assert probability_of_yes({"yes": -math.inf, "no": -math.inf}) is None


@given(st.floats(-1e4, 0), st.floats(-1e4, 0))
def test_probability_is_one_for_any_logprobs(yes, no):
    p = probability_of_yes({"yes": yes, "no": no})
    assert 0 <= p <= 1
    assert p + probability_of_yes({"yes": no, "no": yes}) == pytest.approx(1)


class Scripted:
    def choice_logprobs(self, requests, choices):
        assert set(choices) == {"yes", "no"}
        self.prompts = [request.prompt for request in requests]
        return [{"yes": 0.0, "no": -math.inf}, Failure("gone"), {"yes": -math.inf, "no": -math.inf}]


def test_the_checker_reads_every_kind_of_reply():
    model = Scripted()
    checker = FirstTokenChecker({"checker": model}, Template("{question} Look."), seed=0)
    results = checker.check([Check("A?"), Check("B?"), Check("A?"), Check("C?")])
    assert results == [1.0, Failure("gone"), 1.0, Aside("neither yes nor no", "C?")]
    assert model.prompts == ["A? Look.", "B? Look.", "C? Look."]
