"""What models write when they pick an option, and how it is to be read."""

from collections.abc import Mapping

import pytest

from uni_dpo.engine import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import load_grader
from uni_dpo.graders.multiple_choice import multiple_choice, pick_option

ANIMALS = {"A": "dog", "B": "cat", "C": "fish", "D": "cow"}
PHRASINGS: list[tuple[str, str | None]] = [
    ("我认为是B选项，因为A是狗", "B"),
    ("A: ✗\nB: ✓\nC: ✗\nD: ✗", "B"),
    ("A. dog ❌\nB. cat ✅\nC. fish ❌\nD. cow ❌", "B"),
    ("There is no cat in the picture.", None),
    ("<B>", "B"),
    ("<B>B</B>", "B"),
    ("ans: b", "B"),
    ("The answer is either B or C, but I think C", "C"),
    ("Based on the image, the answer is C. However, wait — it's D.", "D"),
    ("The answer is A. Wait, no. It's D.", "D"),
    ("The answer is A. On second thought, the answer is C.", "C"),
    ("答案是A。不对，应该是C。", "C"),
    ("The answer is B. Wait, let me check A: it has a tail. A is not right. So B.", "B"),
    ("The answer is B. Wait, is it A? No.", "B"),
    ("The answer is A. The cow must wait.", "A"),
    ("A不对，B不对，选C", "C"),
    ("the answer would be 'B'", "B"),
    ("A is not right, neither is C. B it is.", "B"),
    ("Let's see: A is a dog, B is a cat, C is a fish. The picture shows a cat.", "B"),
    ("可能是B也可能是C", None),
    ("Is it 'A'? It's 'B'.", "B"),
    ("B", "B"),
    ("b", "B"),
    ("(B)", "B"),
    ("**B**", "B"),
    ("\\boxed{B}", "B"),
    ("\\boxed{\\text{B}}", "B"),
    ("B.", "B"),
    ("B)", "B"),
    ("B. cat", "B"),
    ("B: cat", "B"),
    ("Ｂ", "B"),
    ("（Ｂ）", "B"),
    ("Answer: B", "B"),
    ("answer: b", "B"),
    ("The answer is B", "B"),
    ("The answer is B.", "B"),
    ("The correct answer is **B**.", "B"),
    ("The correct answer is option B.", "B"),
    ("Option B", "B"),
    ("Option B is correct.", "B"),
    ("<answer>B</answer>", "B"),
    ("<think>A? No, dog is wrong.</think>B", "B"),
    ("<think>maybe A</think><answer>B. cat</answer>", "B"),
    ("答案是B", "B"),
    ("答案是B。", "B"),
    ("答案：B", "B"),
    ("答案为B", "B"),
    ("选B", "B"),
    ("我选B。", "B"),
    ("应该选择B。", "B"),
    ("正确答案是B。", "B"),
    ("正确选项是B", "B"),
    ("故选B。", "B"),
    ("因此，答案是(B)。", "B"),
    ("【答案】B", "B"),
    ("B选项正确", "B"),
    ("不是A而是C", "C"),
    ("不是A，而是C。", "C"),
    ("not A, but C", "C"),
    ("It is not A, but C.", "C"),
    ("It is not A but C", "C"),
    ("The answer is not A but C.", "C"),
    ("The answer is a cat.", "B"),
    ("The answer is a cat", "B"),
    ("a cat", "B"),
    ("cat", "B"),
    ("A cat.", "B"),
    ("A cat is sitting there.", "B"),
    ("It is a cat.", "B"),
    ("The image shows a cat.", "B"),
    ("I see a cat in the picture, so the answer is cat.", "B"),
    ("图中是cat", "B"),
    (
        "Option A shows a dog, which is not there. Option B shows a cat, which is. Therefore, the answer is B.",
        "B",
    ),
    ("A is wrong because there is no dog. C is wrong as well. So B.", "B"),
    ("A is incorrect. B is correct. C is incorrect.", "B"),
    ("A和C都不对，选B", "B"),
    ("排除A、C、D，选B", "B"),
    ("排除A、C、D。", "B"),
    ("neither A nor B", None),
    ("A or B", None),
    ("A and B", None),
    ("A, B", None),
    ("AB", None),
    ("A/B", None),
    ("It could be A or B.", None),
    ("The answer is A or B.", None),
    ("答案是A或B", None),
    ("A和B", None),
    ("I don't know.", None),
    ("", None),
    ("Sorry, I cannot help with that.", None),
    ("不知道", None),
    ("I cannot tell whether it is A or B.", None),
    ("无法判断", None),
    ("a", "A"),
    ("A", "A"),
    ("A.", "A"),
    ("The answer is A.", "A"),
    ("The answer is a.", "A"),
    ("The answer is A because there is a dog", "A"),
    ("A dog", "A"),
    ("A bird.", None),
    ("A picture of nothing.", None),
    ("The answer is a bird.", None),
    ("At first I thought A, but the answer is B.", "B"),
    ("The answer is B, not A.", "B"),
    ("The answer is B rather than A.", "B"),
    ("I would choose B.", "B"),
    ("I'd go with B", "B"),
    ("My choice is B.", "B"),
    ("I pick (B).", "B"),
    ("B is the correct answer.", "B"),
    ("Final answer: B", "B"),
    ("### Answer\nB", "B"),
    ("Let me think.\n\nB", "B"),
    ("The animal has whiskers.\n\n**Answer: B. cat**", "B"),
    ("B\nBecause the animal has whiskers.", "B"),
    ("B. The animal is a cat, not a dog.", "B"),
    ("$\\boxed{\\mathrm{B}}$", "B"),
    ("The answer is $B$.", "B"),
    ("`B`", "B"),
    ('"B"', "B"),
    ("Answer (B)", "B"),
    ("Answer B", "B"),
    ("The answer is: (B) cat", "B"),
    ("The correct option is\nB", "B"),
    ("Is it A? No. It is B.", "B"),
    ("A. dog\nB. cat\nC. fish\nD. cow", None),
    ("A. dog B. cat", None),
    ("Choices: A. dog, B. cat. I choose B.", "B"),
    ("The cat is not a dog.", "B"),
    ("There is a cat and a dog.", None),
    ("not a dog", None),
    ("It isn't a dog; it's a cat.", "B"),
    ("It's B.", "B"),
    ("So it must be B.", "B"),
    ("Therefore, B.", "B"),
    ("Hence option (B) is right.", "B"),
    ("因此选B", "B"),
    ("所以答案应该是B", "B"),
    ("选项B", "B"),
    ("选项A描述的是dog，选项B描述的是cat，图中是一只cat，所以选B。", "B"),
    ("A不正确，B正确", "B"),
    ("不选A，选B", "B"),
    ("答案不是A，是B", "B"),
    ("应选Ｂ", "B"),
    ("B、cat", "B"),
    ("B：cat", "B"),
    ("答案是 cat", "B"),
    ("A. cat", None),
    ("None of the above", None),
    ("以上都不是", None),
    ("\\boxed{cat}", "B"),
    ("Answer: a cat", "B"),
    ("####  B", "B"),
    ("I think the answer might be B", "B"),
    ("The best choice would be B.", "B"),
    ("Both A and B are correct.", None),
    ("It's either A or B.", None),
    ("E", None),
    ("The answer is E.", None),
    ("[B]", "B"),
    ("{B}", "B"),
    ("B - cat", "B"),
    ("It is definitely B!", "B"),
    ("Looking at option A: a dog. Looking at option B: a cat. The picture shows whiskers. B", "B"),
    ("The answer is B. Option A is wrong since there is no dog.", "B"),
    ("I ruled out A, C and D.", "B"),
    ("Not A.", None),
    ("B is wrong.", None),
    ("I considered A, but B fits better.", "B"),
    ("Based on the image, the correct answer is:\n\n**B. cat**", "B"),
    ("So the answer is B, since A cat has whiskers.", "B"),
    ("答案：Ｂ．cat", "B"),
    ("经过分析，B是正确的。", "B"),
    ("这道题选择B选项。", "B"),
    ("是B", "B"),
    ("应该是B吧", "B"),
    ("A. dog is wrong; the answer is B", "B"),
    ("THE ANSWER IS B", "B"),
    ("It's not B. It's not C. It's not D.", "A"),
    ("CAT", "B"),
    ("“cat”", "B"),
    ("the cat", "B"),
    ("cats", None),
    ("I am not sure, maybe B.", "B"),
    ("The dog is sleeping. Wait, it is a cat.", "B"),
    ("My answer: C (fish)", "C"),
    ("The option B (cat) is the one that matches", "B"),
    ("The answer is not B.", None),
    ("答案不是B", None),
    ("是A还是B？", None),
    ("A或者B", None),
    ("The red one? No. I'd pick C.", "C"),
    ("Option D (cow) can be excluded, and so can A. It is B.", "B"),
    ("The animal is a cow", "D"),
    ("答案是(C)鱼", "C"),
    ("我认为应该选择 D", "D"),
    ("A、B、C都不对，所以选D", "D"),
    ("B、C、D都不正确", "A"),
    ("选项A和选项B都错误，C正确", "C"),
    ("Ａ", "A"),
    ("（ｃ）", "C"),
    ("The final answer is \\(\\boxed{D}\\).", "D"),
    ("\\boxed{\\textbf{(C)}}", "C"),
    ("<answer> (D) cow </answer>", "D"),
    ("<answer>a cow</answer>", "D"),
    ("None", None),
    ("ABCD", None),
    ("我不确定", None),
    ("图片里没有这些动物", None),
    ("The answer cannot be A.", None),
    ("It can't be A. It must be C.", "C"),
    ("Correct Answer: **(B)**\nIncorrect: A, C, D", "B"),
    ("The correct answer is B. Incorrect options: A, C, D.", "B"),
    ("Between A and B, B is better.", "B"),
    ("Answer: The animal is a cat.", "B"),
    ("B\n\nA. dog\nB. cat\nC. fish\nD. cow", "B"),
    ("A. dog\nB. cat\nC. fish\nD. cow\nAnswer: The animal is a cat.", "B"),
]
"""An answer to a question with the options of `ANIMALS`, and the option that a reader takes it for; None: none."""

CHINESE = {"A": "狗", "B": "猫", "C": "鱼"}
TEN = {letter: f"thing {letter}" for letter in "ABCDEFGHIJ"}
NUMBERS = {"A": "2", "B": "3", "C": "4"}
OTHERS: list[tuple[Mapping[str, str], str, str | None]] = [
    (TEN, "The answer is I.", "I"),
    (TEN, "The answer is (I).", "I"),
    (TEN, "I think it is H.", "H"),
    (CHINESE, "猫", "B"),
    (CHINESE, "图中是一只猫。", "B"),
    (CHINESE, "这是猫，不是狗。", "B"),
    (CHINESE, "答案是猫", "B"),
    (CHINESE, "不是狗，而是猫", "B"),
    (CHINESE, "猫和狗", None),
    (CHINESE, "图中有一只猫在睡觉", "B"),
    (CHINESE, "应该是狗，不对，是猫", "B"),
    (CHINESE, "我选择猫。", "B"),
    (CHINESE, "答案：猫", "B"),
    (CHINESE, "Ｃ．鱼", "C"),
    (NUMBERS, "3", "B"),
    (NUMBERS, "３", "B"),
    (NUMBERS, "There are 3 dogs.", "B"),
    (NUMBERS, "The answer is 3.", "B"),
    (NUMBERS, "13", None),
    (NUMBERS, "3.5", None),
    (NUMBERS, "$3$", "B"),
    (NUMBERS, "答案是3", "B"),
    (NUMBERS, "I count 3", "B"),
    (NUMBERS, "The answer is 4 - 1 = 3", "B"),
    (NUMBERS, "-3", None),
    ({"A": "Yes", "B": "No"}, "yes", "A"),
    ({"A": "Yes", "B": "No"}, "Yes, it is.", "A"),
    ({"A": "Yes", "B": "No"}, "No.", "B"),
    ({"A": "Yes", "B": "No"}, "The answer is no", "B"),
    ({"A": "Yes", "B": "No"}, "不是", None),
    ({"A": "red", "B": "dark red", "C": "Vitamin C"}, "dark red", "B"),
    ({"A": "red", "B": "dark red", "C": "Vitamin C"}, "It is dark red.", "B"),
    ({"A": "red", "B": "dark red", "C": "Vitamin C"}, "Vitamin C", "C"),
    ({"A": "red", "B": "dark red", "C": "Vitamin C"}, "red", "A"),
    (NUMBERS, "There are three dogs.", "B"),
    (NUMBERS, "\\boxed{\\frac{6}{2}}", "B"),
    ({"A": "-2", "B": "2"}, "\u22122", "A"),
    ({"A": "two", "B": "three"}, "I see 3 of them.", "B"),
    ({"A": "\\frac{1}{2}", "B": "\\frac{1}{3}", "C": "2"}, "$\\dfrac{1}{2}$", "A"),
    ({"A": "1/2", "B": "1/3"}, "\\boxed{\\dfrac{1}{3}}", "B"),
    ({"A": "1/2", "B": "1/3"}, "½", "A"),
    ({"A": "90°", "B": "45°"}, "\\boxed{45^{\\circ}}", "B"),
    ({"A": "90°", "B": "45°"}, "90 degrees", "A"),
    ({"A": "50%", "B": "5%"}, "50\\%", "A"),
    ({"A": "1,000", "B": "10,000"}, "The population is 10 000.", "B"),
    ({"A": "$5", "B": "$50"}, "$50.00", "B"),
    ({"A": "0.5", "B": "0.05"}, ".5", "A"),
    ({"A": "5 m", "B": "10 m", "C": "5 cm"}, "5cm", "C"),
    ({"A": "5 m", "B": "10 m", "C": "5 cm"}, "5", None),
    ({"A": "x=2", "B": "x=3"}, "x = 3", "B"),
    ({"A": "是", "B": "否"}, "不是。", "B"),
    ({"A": "是", "B": "否"}, "是的，图中有一只狗。", "A"),
    ({"A": "对", "B": "错"}, "不对", "B"),
    ({"A": "有", "B": "没有"}, "没有", "B"),
    ({"A": "はい", "B": "いいえ"}, "はい、います。", "A"),
    ({"A": "Oui", "B": "Non"}, "Oui, c'est un chat.", "A"),
    ({}, "B", "B"),
    ({}, "I am a cat", None),
    ({}, "The answer is D", "D"),
    ({}, "I", "I"),
]


@pytest.mark.parametrize(("text", "letter"), PHRASINGS)
def test_a_phrasing_is_read_as_a_reader_reads_it(text: str, letter: str | None) -> None:
    assert pick_option(text, ANIMALS) == letter


@pytest.mark.parametrize(("options", "text", "letter"), OTHERS)
def test_other_options_are_read_too(options: Mapping[str, str], text: str, letter: str | None) -> None:
    assert pick_option(text, options) == letter


def test_the_table_is_large_and_in_both_languages() -> None:
    texts = {text for text, _ in PHRASINGS}
    assert len(texts) == len(PHRASINGS) >= 120
    assert sum(any("\u4e00" <= character <= "\u9fff" for character in text) for text in texts) >= 30
    assert sum(letter is None for _, letter in PHRASINGS) >= 25


def test_at_least_as_right_as_vlmevalkit(monkeypatch: pytest.MonkeyPatch) -> None:
    from uni_dpo.vlmeval.kit import import_kit

    import_kit()
    from vlmeval.utils.matching_util import can_infer

    monkeypatch.delenv("VERBOSE", raising=False)
    theirs = [can_infer(text, dict(ANIMALS)) or None for text, _ in PHRASINGS]
    right = [letter if given != "Z" else given for given, (_, letter) in zip(theirs, PHRASINGS, strict=True)]
    their_count = sum(given == wanted for given, wanted in zip(theirs, right, strict=True))
    our_count = sum(pick_option(text, ANIMALS) == letter for text, letter in PHRASINGS)
    assert our_count == len(PHRASINGS) > their_count


def test_letter_or_text_is_the_reference() -> None:
    def graded(answer: str, reference: str) -> float | None:
        return multiple_choice(answer, Question("q", "?", reference=reference, options={"a": "a cat", "b": "a dog"}))

    assert graded("B", "B") == 1.0
    assert graded("B.", "a dog") == 1.0
    assert graded("A", "B") == 0.0
    assert graded("who knows", "B") is None
    with pytest.raises(UniDPOError, match="none of the options"):
        graded("A", "D")


def test_any_of_several_references_is_right() -> None:
    question = Question("q", "?", reference="A", references=("A", "C"), options=ANIMALS)
    grade = load_grader("multiple_choice")
    assert [grade(answer, question) for answer in ("a dog", "C", "B", "?")] == [1.0, 1.0, 0.0, None]


@pytest.mark.parametrize(
    ("answer", "picked"), [("Yes, there is no doubt.", "A"), ("No.", "B"), ("No, it is not.", "B"), ("It is: no", "B")]
)
def test_no_before_a_word_is_not_the_option_no(answer: str, picked: str) -> None:
    assert pick_option(answer, {"A": "Yes", "B": "No"}) == picked


def test_an_option_in_dollar_signs_is_the_same_formula_in_a_box() -> None:
    assert pick_option(r"\boxed{\frac{1}{2}}", {"A": "$x^2$", "B": r"$\frac{1}{2}$"}) == "B"
