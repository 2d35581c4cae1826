"""VQA accuracy. With m of ten people for the answer, leaving out one of them leaves m - 1, leaving out another m."""

import pytest

from uni_dpo.engine import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import load_grader


@pytest.mark.parametrize(
    ("matches", "accuracy"),
    [
        (0, 0.0),
        (1, 0.3),  # (1 · 0 + 9 · 1/3) / 10
        (2, 0.6),  # (2 · 1/3 + 8 · 2/3) / 10
        (3, 0.9),  # (3 · 2/3 + 7 · 1) / 10
        (4, 1.0),
        (10, 1.0),
    ],
)
def test_ten_people(matches: int, accuracy: float) -> None:
    people = ("nokia",) * matches + ("toshiba",) * (10 - matches)
    question = Question("q", "What brand is it?", reference=people[0], references=people)
    assert load_grader("vqa")("Nokia.", question) == pytest.approx(accuracy)


def test_articles_number_words_and_punctuation_do_not_count() -> None:
    grade = load_grader("vqa")
    for answer, reference in (
        ("The two dogs!", "2 dogs"),
        ("1,000", "1000"),
        ("it's 3.5", "its 3.5"),
        ("an apple", "apple"),
    ):
        assert grade(answer, Question("q", "?", reference=reference)) == 1.0
    assert grade("3.5", Question("q", "?", reference="35")) == 0.0
    assert grade(" ", Question("q", "?", reference="x")) is None
    with pytest.raises(UniDPOError, match="needs a reference answer"):
        grade("x", Question("q", "?"))
