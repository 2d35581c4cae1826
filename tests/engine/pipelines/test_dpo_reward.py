import pytest
from hypothesis import given
from hypothesis import strategies as st

from uni_dpo.engine import Question
from uni_dpo.engine.pipelines.dpo_reward import DpoReward, DpoRewardOptions, DpoRewardPairs, rank_pairs, rewards
from uni_dpo.engine.records import Answered, ScoredAnswer
from uni_dpo.models.backends import AnswerLogprob, Failure


def scored(text, total, mean):
    return ScoredAnswer(text, total, {"sum": total, "mean": mean})


def test_rewards_by_hand_with_tokens_of_each_models_own():
    # 0.1 · (−6 − (−10)) = 0.4; per token 0.1 · (−6/4 − (−10/5)) = 0.05
    assert rewards(AnswerLogprob(-6.0, 4), AnswerLogprob(-10.0, 5), 0.1) == pytest.approx((0.4, 0.05))


def test_chosen_is_best_by_both_and_rejected_worst_by_both():
    answers = [
        scored("a1", 9, 1.0),  # first by sum, last but one by mean: no chosen
        scored("b2", 8, 9.0),
        scored("c3", 7, 8.0),
        scored("d4", 3, 3.0),
        scored("e5", 2, 7.0),  # among the last by sum, not by mean: no rejected
        scored("f6", 1, 0.5),
    ]
    pairs = rank_pairs("q", answers, DpoRewardPairs(rank=3))
    # best by both: b, c; worst by both (worst first): f, d
    assert [(p.chosen, p.rejected, p.score_chosen, p.score_rejected) for p in pairs] == [
        ("b2", "f6", 8, 1),
        ("c3", "d4", 7, 3),
    ]
    assert len(rank_pairs("q", answers, DpoRewardPairs(rank=3, max_pairs_per_question=1))) == 1


def test_published_pairs_are_each_of_the_best_with_each_of_the_worst():
    answers = [
        scored(text, value, value) for text, value in (("a", 6), ("b", 5), ("c", 4), ("d", 3), ("e", 2), ("f", 1))
    ]
    answers[4] = scored("e " * 40, 2, 2)  # too long beside the others
    pairs = rank_pairs("q", answers, DpoRewardPairs(choose="published", rank=2, max_pairs_per_question=9))
    assert [(p.chosen, p.rejected) for p in pairs] == [("a", "f"), ("b", "f")]
    three = rank_pairs("q", answers, DpoRewardPairs(choose="published", rank=3))
    assert [(p.chosen, p.rejected) for p in three] == [("a", "f"), ("a", "d"), ("b", "f")]
    # Best with worst, second with second, third with third: the second pair is too unequal in length.
    ranked = rank_pairs("q", answers, DpoRewardPairs(rank=3))
    assert [(p.chosen, p.rejected) for p in ranked] == [("a", "f"), ("c", "d")]


def test_ranks_never_overlap():
    assert rank_pairs("q", [scored("a", 1, 1)], DpoRewardPairs()) == []
    (pair,) = rank_pairs("q", [scored("a", 1, 1), scored("b", 2, 2), scored("c", 3, 3)], DpoRewardPairs(rank=3))
    assert (pair.chosen, pair.rejected) == ("c", "a")


def test_pairs_of_very_unequal_length_and_near_duplicates_are_left_out():
    long = scored("w " * 30, 5, 5)
    assert rank_pairs("q", [long, scored("b", 1, 1)], DpoRewardPairs()) == []
    assert len(rank_pairs("q", [long, scored("b", 1, 1)], DpoRewardPairs(max_word_difference=30))) == 1
    text = " ".join(map(str, range(40)))
    twins = [scored(text, 5, 5), scored(f"{text} ", 4, 4)]
    assert rank_pairs("q", twins, DpoRewardPairs()) == []


answers = st.lists(
    st.builds(
        scored, st.text("ab ", min_size=1, max_size=5), st.integers(-5, 5).map(float), st.integers(-5, 5).map(float)
    ),
    max_size=10,
)


@given(answers, st.integers(1, 4), st.integers(1, 3), st.randoms())
def test_rules_hold_for_any_answers_in_any_order(given_answers, rank, cap, random):
    unique = list({" ".join(a.text.split()): a for a in given_answers}.values())
    options = DpoRewardPairs(rank=rank, max_pairs_per_question=cap)
    pairs = rank_pairs("q", unique, options)
    assert len(pairs) <= min(cap, rank)
    used = [text for p in pairs for text in (p.chosen, p.rejected)]
    assert len(used) == len(set(used))
    assert all(p.score_chosen > p.score_rejected and p.chosen.split() != p.rejected.split() for p in pairs)
    random.shuffle(unique)
    assert rank_pairs("q", unique, options) == pairs


def test_length_bias_is_bounded_over_the_data_set():
    pairs = rank_pairs("q", [scored("one two three", 2, 2), scored("one", 1, 1)], DpoRewardPairs())
    assert len(pairs) == 1
    assert DpoReward.balance(pairs, DpoRewardPairs()) == []
    assert DpoReward.balance(pairs, DpoRewardPairs(max_mean_word_difference=2)) == pairs


class Model:
    def __init__(self, **table):
        self.table = table

    def answer_logprobs(self, requests, answers):
        assert len(requests) == len(answers)
        return [self.table[answer] for answer in answers]


def test_answers_are_matched_with_their_own_questions():
    aligned = Model(a=AnswerLogprob(-1.0, 2), b=AnswerLogprob(-2.0, 2), c=Failure("gone"), d=AnswerLogprob(0.0, 0))
    reference = Model(**dict.fromkeys("abcd", AnswerLogprob(-4.0, 4)))
    pipeline = DpoReward(DpoRewardOptions(beta=1.0), {"aligned": aligned, "reference": reference}, 0)
    one, two, three = pipeline.reward(
        [
            Answered(Question("x", "?"), ("a", "d")),
            Answered(Question("y", "?"), ("c",)),
            Answered(Question("z", "?"), ("b",)),
        ]
    )
    assert one.answers == (ScoredAnswer("a", 3.0, {"sum": 3.0, "mean": 0.5, "aligned": -1.0, "reference": -4.0}),)
    assert one.aside[0].reason == "no tokens to score"
    assert two == Failure("gone")
    assert three.answers[0].score == 2.0
