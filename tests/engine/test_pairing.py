import pytest
from hypothesis import given
from hypothesis import strategies as st

from uni_dpo.engine.pairing import (
    PairOptions,
    balance_lengths,
    bound_mean_difference,
    choose_pairs,
    distinct,
    drop_near_duplicates,
    length_imbalance,
)
from uni_dpo.engine.records import Pair, ScoredAnswer


def answers(**scores):
    return [ScoredAnswer(text, score) for text, score in scores.items()]


def gap_pairs(question_id, given, min_gap, cap, seed):
    return choose_pairs(question_id, given, PairOptions(min_gap, cap), seed)


def pair(chosen_words, rejected_words, question="q"):
    return Pair(question, " ".join(["a"] * chosen_words), " ".join(["b"] * rejected_words), 2.0, 1.0)


def test_every_pair_with_the_gap_is_made():
    made = gap_pairs("q", answers(a=10, b=9, c=7.5), min_gap=1.5, cap=9, seed=0)
    assert [(p.chosen, p.rejected, p.score_chosen, p.score_rejected) for p in made] == [
        ("a", "c", 10, 7.5),
        ("b", "c", 9, 7.5),
    ]


def test_equal_scores_make_no_pair_even_without_a_gap():
    assert gap_pairs("q", answers(a=1, b=1), min_gap=0, cap=9, seed=0) == []


def test_answers_that_differ_in_white_space_count_once():
    kept = distinct([ScoredAnswer("a b", 1), ScoredAnswer(" a  b", 9), ScoredAnswer("c", 2)])
    assert [answer.score for answer in kept] == [1, 2]


def test_the_cap_is_drawn_by_the_seed():
    many = answers(**{f"t{i}": i for i in range(8)})
    draws = {tuple(gap_pairs("q", many, min_gap=1, cap=2, seed=seed)) for seed in range(20)}
    assert len(draws) > 10
    assert gap_pairs("q", many, min_gap=1, cap=2, seed=3) == gap_pairs("q", many, min_gap=1, cap=2, seed=3)


texts = st.text("ab ", min_size=1, max_size=6)
scored = st.builds(ScoredAnswer, texts, st.integers(0, 10).map(float))


@given(st.lists(scored, max_size=9), st.floats(0, 5), st.integers(1, 5), st.integers(0, 99))
def test_rules_hold_for_any_answers(given_answers, gap, cap, seed):
    made = gap_pairs("q", given_answers, min_gap=gap, cap=cap, seed=seed)
    assert len(made) <= cap
    assert len(set(made)) == len(made)
    own = {(a.text, a.score) for a in given_answers}
    for p in made:
        assert p.question_id == "q"
        assert p.chosen.split() != p.rejected.split()
        assert p.score_chosen > p.score_rejected
        assert p.score_chosen - p.score_rejected >= gap * (1 - 1e-9)
        assert {(p.chosen, p.score_chosen), (p.rejected, p.score_rejected)} <= own


def test_the_published_search_by_hand():
    # Shortenings: 0.9, 0.5, 0 and none. Kept at r in [0.5, 0.9): words 5+10+8 = 23 against 10+10+6 = 26,
    # imbalance 3/26; at r < 0.5: 18 against 16, 2/16; at r >= 0.9: 24 against 36, 12/36.
    pairs = [pair(1, 10), pair(5, 10), pair(10, 10), pair(8, 6)]
    kept = balance_lengths(pairs, "published")
    assert kept == pairs[1:]
    assert length_imbalance(kept) == pytest.approx(3 / 26)


def test_the_published_search_cannot_help_where_chosen_is_longer_but_both_can():
    pairs = [pair(10, 2), pair(5, 5), pair(6, 6)]
    assert balance_lengths(pairs, "published") == pairs
    assert balance_lengths(pairs, "both") == pairs[1:]
    assert balance_lengths(pairs, "off") == pairs


def test_of_equally_balanced_outcomes_the_largest_is_taken():
    pairs = [pair(5, 5), pair(3, 4), pair(4, 3)]
    assert balance_lengths(pairs, "published") == pairs


lengths = st.lists(st.builds(pair, st.integers(1, 30), st.integers(1, 30)), max_size=12)


@given(lengths, st.sampled_from(["published", "both"]))
def test_balancing_keeps_a_subset_and_makes_nothing_worse(pairs, how):
    kept = balance_lengths(pairs, how)
    remaining = list(pairs)
    for p in kept:
        remaining.remove(p)
    if pairs:
        assert kept
        # r = 0.98 leaves every pair of fewer than 50 words a side, so doing nothing is among the candidates.
        assert length_imbalance(kept) <= length_imbalance(pairs)


def test_the_mean_difference_is_bounded_from_the_extreme_end():
    pairs = [pair(9, 1), pair(4, 2), pair(2, 2), pair(1, 2)]  # differences 8, 2, 0, -1
    kept = bound_mean_difference(pairs, 0.5)
    assert sorted(p.word_difference for p in kept) == [-1, 0, 2]
    assert bound_mean_difference([pair(1, 9)], 0.5) == []


@given(lengths, st.floats(0, 5))
def test_the_bound_holds_for_any_pairs(pairs, limit):
    kept = bound_mean_difference(pairs, limit)
    assert abs(sum(p.word_difference for p in kept)) <= limit * len(kept)


def test_near_duplicates_by_word_ngrams():
    long = "one two three four five six seven eight nine ten eleven twelve"
    texts = [long, long, long.replace("twelve", "thirteen"), "one two", "one  two", "two one"]
    kept = drop_near_duplicates([ScoredAnswer(text, 0) for text in texts], 0.9)
    # "... eleven thirteen" shares 2 of 4 ten-grams; "one two" shares its bigram with the long text, but 1 of 11.
    assert [answer.text for answer in kept] == [texts[0], texts[2], texts[3], texts[5]]
