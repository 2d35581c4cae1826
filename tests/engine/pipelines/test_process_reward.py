"""Process scores and their combination with the outcome; numbers by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uni_dpo.engine import Question, register
from uni_dpo.engine.pairing import BestWorstOptions
from uni_dpo.engine.pipelines.process_reward import (
    PIPELINE,
    ProcessRewardOptions,
    aggregate,
    split_steps,
)
from uni_dpo.engine.records import Answered, ScoredAnswer
from uni_dpo.errors import UniDPOError


@register("grader", "test_ends_with")
def ends_with(answer, question):
    return None if answer.endswith("?") else float(answer.endswith(question.reference))


class Rater:
    """P(right) of a step is written in it: `.75: text`."""

    def __init__(self):
        self.seen = []

    def rate_steps(self, requests, answers):
        self.seen += [(request.prompt, tuple(steps)) for request, steps in zip(requests, answers, strict=True)]
        return [[float(step.split(":")[0]) for step in steps] for steps in answers]


def run(*answers, **options):
    rater = Rater()
    pipeline = PIPELINE(ProcessRewardOptions(grader="test_ends_with", **options), {"process": rater}, 0)
    (scored,) = pipeline.reward([Answered(Question("q", "Sum?", reference="5"), answers)])
    return scored, rater


@pytest.mark.parametrize(("how", "expected"), [("min", 0.25), ("product", 0.075), ("mean", 0.45), ("last", 0.6)])
def test_aggregation(how, expected):
    assert aggregate([0.5, 0.25, 0.6], how) == pytest.approx(expected)
    assert aggregate([0.7], how) == pytest.approx(0.7)


def test_steps_are_cut_at_the_separator():
    assert split_steps("one\n\ntwo\nlines \n\n\n\n three\n\n", "\n\n") == ["one", "two\nlines", "three"]
    assert split_steps("one\n\ntwo\nlines", "\n") == ["one", "two", "lines"]
    assert split_steps("\n\n", "\n\n") == ["\n\n"]


RIGHT, SHAKY, WRONG, UNGRADED = ".9: a\n\n.5: so 5", ".2: b\n\n.9: so 5", ".8: c\n\n.8: so 6", ".1: what?"


@pytest.mark.parametrize(
    ("options", "scores"),
    [
        # (grade + min of the steps) / 2, on 0 … 10
        ({}, [7.5, 6.0, 4.0, 0.5]),
        ({"outcome": "add"}, [7.5, 6.0, 4.0, 0.5]),
        ({"outcome": "add", "aggregate": "last"}, [7.5, 9.5, 4.0, 0.5]),
        ({"outcome": "ignore"}, [5.0, 2.0, 8.0, 1.0]),
        ({"outcome": "ignore", "aggregate": "product", "low": -1.0, "high": 1.0}, [-0.1, -0.64, 0.28, -0.8]),
    ],
)
def test_scores(options, scores):
    scored, rater = run(RIGHT, SHAKY, WRONG, UNGRADED, RIGHT, **options)
    expected = dict(zip((RIGHT, SHAKY, WRONG, UNGRADED), scores, strict=True))
    assert {answer.text: answer.score for answer in scored.answers} == pytest.approx(expected)
    assert ("Sum?", (".9: a", ".5: so 5")) in rater.seen
    assert len(rater.seen) == 4  # each distinct answer once


def test_how_a_score_came_about_is_kept():
    scored, _ = run(RIGHT, UNGRADED)
    assert scored.answers[0].detail == {"outcome": 1.0, "process": 0.5, "steps": [0.9, 0.5], "required": True}
    assert scored.answers[1].detail["outcome"] is None
    assert scored.detail == {"answers": 2, "right": 1.0, "ungraded": 1, "rated": 2}
    assert PIPELINE.summarize([scored.detail, {"answers": 2, "right": 2.0, "ungraded": 0, "rated": 0}]) == {
        "share of right answers": 0.75, "answers without a grade": 1, "answers rated": 2,
    }  # fmt: skip


@pytest.mark.parametrize("answers", [(RIGHT, SHAKY), (WRONG, UNGRADED), (RIGHT,)])
def test_questions_of_which_no_pair_can_come_are_not_rated(answers):
    scored, rater = run(*answers)
    assert (scored.answers, scored.aside, rater.seen) == ((), (), [])


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        # min of the steps: RIGHT .5, SHAKY .2, WRONG .8, UNGRADED .1
        ("require", [(RIGHT, UNGRADED), (SHAKY, WRONG)]),
        ("add", [(RIGHT, UNGRADED), (SHAKY, WRONG)]),
        ("ignore", [(WRONG, UNGRADED), (RIGHT, SHAKY)]),
    ],
)
def test_pairs(outcome, expected):
    scored, _ = run(RIGHT, SHAKY, WRONG, UNGRADED, outcome=outcome)
    pairs = PIPELINE.pair("q", scored.answers, BestWorstOptions(max_pairs_per_question=2), seed=0)
    assert [(pair.chosen, pair.rejected) for pair in pairs] == expected
    (best,) = PIPELINE.pair("q", scored.answers, BestWorstOptions(), seed=0)
    assert (best.chosen, best.rejected) == expected[0]


grades = st.sampled_from([None, 0.0, 1.0])


@given(st.lists(st.tuples(grades, st.floats(0, 1)), max_size=9), st.sampled_from(["any", "best_worst"]))
def test_a_required_outcome_never_pairs_two_right_or_two_wrong_answers(rated, choose):
    answers = [
        ScoredAnswer(f"answer {n}", (grade or 0.0) + process, {"outcome": grade, "required": True})
        for n, (grade, process) in enumerate(rated)
    ]
    by_text = {answer.text: answer.detail["outcome"] or 0.0 for answer in answers}
    options = BestWorstOptions(max_pairs_per_question=9, choose=choose)
    pairs = PIPELINE.pair("q", answers, options, seed=0)
    assert all(by_text[pair.chosen] == 1.0 and by_text[pair.rejected] == 0.0 for pair in pairs)
    right = sum(by_text.values())
    if right and len(answers) > right and max(process for _, process in rated) < 1:
        assert pairs


def test_bad_options_are_refused_before_any_model():
    with pytest.raises(UniDPOError, match=r"reward\.separator"):
        PIPELINE(ProcessRewardOptions(separator=""), {}, 0)
    with pytest.raises(UniDPOError, match="no grader is called 'maths'"):
        PIPELINE(ProcessRewardOptions(grader="maths"), {}, 0)
    PIPELINE(ProcessRewardOptions(grader="maths", outcome="ignore"), {}, 0)
