from uni_dpo.engine import Answered, Question
from uni_dpo.engine.records import Pair
from uni_dpo.storage.identity import derive_seed


def test_a_question_survives_its_row():
    question = Question("1", "?", ("a.png",), "b", {"A": "x"}, ("y",))
    assert Question.from_row(question.to_row()) == question


def test_distinct_answers_keep_the_first_of_each_and_the_order():
    assert Answered(Question("1", "?"), ("b", "a  c", "b", " a c", "d")).distinct == ("b", "a  c", "d")


def test_seeds_depend_on_every_part_and_fit_63_bits():
    seeds = {derive_seed(0, "a"), derive_seed(0, "b"), derive_seed(1, "a"), derive_seed("0a"), derive_seed(0, "a", "")}
    assert len(seeds) == 5
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "a") == derive_seed(0, "a")


def test_word_difference():
    assert Pair("q", "a b c", "d", 1, 0).word_difference == 2
