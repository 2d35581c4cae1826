"""Numbers as models write them, and what they are equal to."""

import pytest

from uni_dpo.engine import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.numeric import numeric, stated


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("there are 3 of 12", 12.0),
        ("1,234.5 metres", 1234.5),
        ("1.234,50 €", 1234.5),
        ("3,14 m", 3.14),
        ("-1,5", -1.5),
        ("(1,234)", 1234.0),
        ("of 1,2,3 it is 3", 3.0),
        ("1.234.567,8", 1234567.8),
        ("12cm", 12.0),
        ("-4", -4.0),
        ("5-3", 3.0),
        ("about 3/4", 0.75),
        ("2e-3", 0.002),
        ("45%", 45.0),
        ("The answer is 7.", 7.0),
        (".5", 0.5),
        ("1/0", None),
        ("none", None),
        ("It is \u22122 degrees.", -2.0),
        ("\u20132", -2.0),
        ("－２", -2.0),
        ("minus 2", -2.0),
        ("负2", -2.0),
        ("-$5", -5.0),
        ("x=-5", -5.0),
        ("- 5 apples", 5.0),
        ("１２３", 123.0),
        ("1,234,567", 1234567.0),
        ("1 234 567 m", 1234567.0),
        ("1{,}234", 1234.0),
        ("$1,250.", 1250.0),
        ("1,2,3", 3.0),
        ("3.2×10⁸ m/s", 3.2e8),
        ("3 x 10^{-5}", 3e-5),
        (r"3 \times 10^4", 3e4),
        ("10^6", 1e6),
        ("1.5E+03", 1500.0),
        ("½", 0.5),
        ("2½ cups", 2.5),
        ("1 1/2", 1.5),
        (r"\frac{3}{4}", 0.75),
        ("5 m2", 5.0),
        ("5 m²", 5.0),
        ("5 m^2", 5.0),
        ("12 km/h", 12.0),
        ("90°", 90.0),
        ("CO2", None),
        ("H2O and 3D", None),
        ("1. cat\n2. dog", None),
        ("the point (3, 5)", None),
        ("[1,5]", None),
        ("1) 5 apples", 5.0),
        ("7. There are seven", 7.0),
        ("Figure 2 shows 12 apples", 12.0),
        ("Step 1: add. Step 2: 3 + 4 = 7", 7.0),
        ("The answer is 7. I counted 12 earlier.", 7.0),
        ("The answer is 3 + 4 = 7.", 7.0),
        ("答案是 42。共有 3 步", 42.0),
        (r"\boxed{8} of 10", 8.0),
        ("#### 18", 18.0),
        ("between 3 and 5", None),
        ("3 and 5", 5.0),
        ("3-5", None),
        ("3 to 5 metres", None),
        ("3~5个", None),
        ("There are three dogs.", 3.0),
        ("Two.", 2.0),
        ("twenty-one", 21.0),
        ("two hundred and five dogs", 205.0),
        ("five six", None),
        ("two hundred and five birds", 205.0),
        ("one thousand two hundred thirty-four", 1234.0),
        ("There is one dog.", 1.0),
        ("the red one", None),
        ("one of them", None),
        ("No one is there", None),
        ("图中有三只猫", 3.0),
        ("一百零五个", 105.0),
        ("十二", 12.0),
        ("第一张图", None),
        ("It is 5, not 6.", 5.0),
        ("The answer is not 5.", None),
        ("The answer is 3 or 4", None),
        ("4 or 3", None),
        ("at 12:30", None),
        ("at 12:30 there are 4", 4.0),
        ("3:1", None),
        ("2024-05-01", None),
        ("version 1.2.3", None),
        ("1'000'000", 1e6),
        ("1.234.567", 1234567.0),
        ("−½", -0.5),
        ("√2", None),
        ("√16 = 4", 4.0),
        ("3π ≈ 9.42", 9.42),
        ("2^3", 8.0),
        ("5²", 25.0),
        ("GPT-4 says 7", 7.0),
        ("0x1F", None),
    ],
)
def test_the_number_that_a_text_states(text: str, number: float | None) -> None:
    found = stated(text)
    assert (found.low if found is not None and found.low == found.high else None) == number


@pytest.mark.parametrize(
    ("answer", "reference", "grade"),
    [
        ("3.1416", "3.14159", 1.0),
        ("3.2", "3.14159", 0.0),
        ("three", "3", 1.0),
        ("some", "3", None),
        ("45%", "0.45", 1.0),
        ("45%", "45", 1.0),
        ("45 percent", "45%", 1.0),
        ("0.45", "45%", 1.0),
        ("4.5", "45%", 0.0),
        ("45%", "4.5%", 0.0),
        ("33.3%", "1/3", 1.0),
        ("5 million", "5,000,000", 1.0),
        ("$1.5M", "1500000", 1.0),
        ("1.5k", "1,500", 1.0),
        ("5 m", "5000000", 0.0),
        ("300K", "300", 1.0),
        ("12,34,567", "1234567", 1.0),
        ("5*10**3", "5000", 1.0),
        ("**42**", "42", 1.0),
        ("a dozen eggs", "12", 1.0),
        ("half a dozen", "6", 1.0),
        ("5 million", "5", 1.0),
        ("3万", "30000", 1.0),
        ("3-5", "3 to 5", 1.0),
        ("3-6", "3 to 5", 0.0),
        ("3-5", "4", None),
        ("4", "3-5", None),
        ("\u22122", "-2", 1.0),
        ("\u22122", "2", 0.0),
    ],
)
def test_numeric_has_a_tolerance_and_tells_wrong_from_ungradable(
    answer: str, reference: str, grade: float | None
) -> None:
    assert numeric(answer, Question("q", "?", reference=reference)) == grade


DOGS = "How many dogs are in the image? Answer with a number."


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (DOGS, "None"),
        (DOGS, "None."),
        (DOGS, "**Answer:** none"),
        (DOGS, "There are none."),
        (DOGS, "none of them"),
        (DOGS, "No dogs"),
        (DOGS, "no dog"),
        (DOGS, "There are no dogs."),
        (DOGS, "There are no dogs in the image."),
        (DOGS, "There aren’t any dogs in this picture."),
        (DOGS, "No dogs are visible in the image."),
        ("How many dogs are there?", "The answer is none."),
        ("How many dogs are on the sofa?", "There are no dogs on the sofa."),
        ("How many dogs are on the sofa?", "No dogs are on the sofa."),
        ("How many dogs do you see?", "There are no dogs in the picture."),
        ("Take all red cubes away. How many cubes are left?", "There are none left"),
        ("How many of the dogs are black?", "None of the dogs are black."),
        ("How many red cars can be seen?", "There are no red cars."),
    ],
)
def test_none_of_what_is_counted_is_zero(asked: str, answer: str) -> None:
    assert numeric(answer, Question("q", asked, reference="0")) == 1
    assert numeric(answer, Question("q", asked, reference="3")) == 0


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        (DOGS, "No"),
        (DOGS, "Nothing"),
        (DOGS, "none of the above"),
        (DOGS, "None of the dogs is brown."),
        (DOGS, "no idea"),
        (DOGS, "No answer"),
        (DOGS, "no cats"),
        (DOGS, "There are no brown dogs."),
        (DOGS, "There are no dogs on the left."),
        (DOGS, "There are no dogs that I can count with certainty."),
        (DOGS, "There are no dogs, only some cats."),
        (DOGS, "No dogs? I see some."),
        (DOGS, "There are not no dogs"),
        ("How many dogs and cats are there?", "There are no dogs."),
        ("How many dogs or cats are there?", "No dogs"),
        ("How many more dogs than cats are there?", "no more dogs"),
        ("How many dogs are there more than cats?", "No dogs"),
        ("How many dogs are not on the sofa?", "No dogs are on the sofa."),
        ("How many dogs have no collar?", "None"),
        ("How many dogs aren't black?", "None"),
        ("How many dogs are there? How many cats?", "None"),
        ("How many dogs are left of the man on the sofa?", "There are no dogs on the sofa."),
        ("How many dogs are missing?", "There are no dogs in the image."),
        ("How many dogs are only partly visible?", "There are no dogs visible."),
        ("How many fewer dogs are in the first image?", "no fewer dogs"),
        ("How many legs do the dogs have?", "There are no dogs."),
        ("What number is on the shirt?", "None"),
        ("Is there a dog?", "There are no dogs."),
        ("?", "none"),
    ],
)
def test_what_may_be_no_zero_is_not_graded(asked: str, answer: str) -> None:
    for reference in ("0", "3"):
        assert numeric(answer, Question("q", asked, reference=reference)) is None


def test_a_reference_without_a_number_is_refused() -> None:
    with pytest.raises(UniDPOError, match="question q: the reference 'x' holds no number"):
        numeric("3", Question("q", "?", reference="x"))
