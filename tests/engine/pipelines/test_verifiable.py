import pytest

from uni_dpo.engine import Question, register
from uni_dpo.engine.pipelines.verifiable import Verifiable, VerifiableOptions
from uni_dpo.engine.records import Answered
from uni_dpo.errors import UniDPOError


@register("grader", "test_share")
def share(answer, question):
    return None if answer == "?" else float(answer)


def run(*answers, **options):
    pipeline = Verifiable(VerifiableOptions(grader="test_share", **options), {}, 0)
    (scored,) = pipeline.reward([Answered(Question("q", "?"), answers)])
    return scored


def test_scores_by_hand():
    assert [a.score for a in run("0", "0.5", "1").answers] == [0.0, 5.0, 10.0]
    assert [a.score for a in run("0", "0.5", "1", low=1.0, high=5.0).answers] == [1.0, 3.0, 5.0]


def test_the_ungradable_is_counted_and_lowest_or_left_out():
    kept, dropped = run("?", "1"), run("?", "1", keep_ungradable=False)
    assert [a.score for a in kept.answers] == [0.0, 10.0]
    assert [a.score for a in dropped.answers] == [10.0]
    for scored in (kept, dropped):
        assert [(a.reason, a.text) for a in scored.aside] == [("nothing to grade", "?")]


def test_a_grade_out_of_range_names_the_grader():
    with pytest.raises(UniDPOError, match=r"grader test_share: a grade lies in \[0, 1\], but '7' got 7.0"):
        run("7")
