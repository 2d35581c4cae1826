"""The best and the worst of n by a reward model, with their ratings; numbers by hand."""

import math
from types import SimpleNamespace

import pytest

from uni_dpo.engine import Question
from uni_dpo.engine.pairing import BestWorstOptions, choose_pairs
from uni_dpo.engine.pipelines.reward_model import PIPELINE, RatingOptions
from uni_dpo.engine.records import Answered, Aside, ScoredAnswer


class LengthRater:
    """Rates an answer by its length less the number of its question's images; `nan` as nothing at all."""

    def __init__(self):
        self.calls = []

    def rate(self, requests, answers):
        self.calls += [
            (request.prompt, request.images, answer) for request, answer in zip(requests, answers, strict=True)
        ]
        return [
            math.nan if answer == "nan" else float(len(answer) - len(request.images))
            for request, answer in zip(requests, answers, strict=True)
        ]


def test_every_distinct_answer_is_rated_once_with_its_own_question():
    rater = LengthRater()
    items = [
        Answered(Question("x", "X?", ("i.png",)), (" a", "a", "bbb")),
        Answered(Question("y", "Y?"), ("same", "same")),
        Answered(Question("z", "Z?"), ("cc", "nan", "d")),
    ]
    x, y, z = PIPELINE(RatingOptions(), {"reward": rater}, 0).reward(items)
    assert [(answer.text, answer.score) for answer in x.answers] == [(" a", 1.0), ("bbb", 2.0)]
    assert (y.answers, y.aside) == ((), ())  # all alike: no pair, no failure, nothing paid
    assert [(answer.text, answer.score) for answer in z.answers] == [("cc", 2.0), ("d", 1.0)]
    assert z.aside == (Aside("rated nan", "nan"),)
    assert rater.calls == [
        ("X?", ("i.png",), " a"), ("X?", ("i.png",), "bbb"), ("Z?", (), "cc"), ("Z?", (), "nan"), ("Z?", (), "d"),
    ]  # fmt: skip
    assert PIPELINE.summarize([x.detail, y.detail, z.detail]) == {"questions whose answers are all alike": 1}


def test_answers_are_rated_behind_the_system_prompt_that_they_were_given():
    seen = []
    rater = SimpleNamespace(rate=lambda requests, texts: [seen.append(request.system) or 0.0 for request in requests])
    items = [Answered(Question("x", "X?", system="Be brief."), ("a", "b")), Answered(Question("y", "Y?"), ("a", "b"))]
    PIPELINE(RatingOptions(), {"reward": rater}, 0).reward(items)
    assert seen == ["Be brief."] * 2 + [None] * 2


def answers(**scores):
    return [ScoredAnswer(text, score) for text, score in scores.items()]


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ({"a": -1.5, "b": 3.25, "c": 0.0, "d": 3.0, "e": -1.0}, [("b", "a", 3.25, -1.5)]),
        ({"a": 1.0, "b": 1.0, "c": 1.0}, []),
        ({"a": 1.0}, []),
        # Of equals the first by text is the better one.
        ({"d": 0.0, "c": 0.0, "b": 2.0, "a": 2.0}, [("a", "d", 2.0, 0.0)]),
    ],
)
def test_best_against_worst(scores, expected):
    pairs = PIPELINE.pair("q", answers(**scores), BestWorstOptions(), seed=0)
    assert [(p.chosen, p.rejected, p.score_chosen, p.score_rejected) for p in pairs] == expected
    assert PIPELINE.pair("q", answers(**dict(reversed(scores.items()))), BestWorstOptions(), seed=1) == pairs


def test_more_pairs_go_from_the_outside_in_and_keep_the_gap():
    five = answers(a=5.0, b=4.0, c=3.0, d=2.5, e=0.0)
    both = choose_pairs("q", five, BestWorstOptions(0.0, 9), seed=0)
    assert [(p.chosen, p.rejected) for p in both] == [("a", "e"), ("b", "d")]
    assert [(p.chosen, p.rejected) for p in choose_pairs("q", five, BestWorstOptions(1.6, 9), seed=0)] == [("a", "e")]
    drawn = {tuple(choose_pairs("q", five, BestWorstOptions(choose="any"), seed)) for seed in range(20)}
    assert len(drawn) > 5
