"""How the demo grades answers."""

import pytest

from uni_dpo.demo.digits import answer
from uni_dpo.demo.stages import closeness
from uni_dpo.engine import Question


@pytest.mark.parametrize(
    ("given", "grade"),
    [
        (answer(3), 1.0),
        (f" {answer(3)}\n", 1.0),
        (answer(4), 0.4 * 8 / 9),
        (answer(2), 0.4 * 8 / 9),
        (answer(9), 0.4 * 3 / 9),
        ("The digit is three three.", 0.0),
        ("three", 0.0),
        ("", 0.0),
    ],
)
def test_closeness_by_hand(given: str, grade: float) -> None:
    question = Question(id="q", text="?", images=(), reference=answer(3))
    assert closeness(given, question) == pytest.approx(grade)
