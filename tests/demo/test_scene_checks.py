"""Drawn pictures by divide and conquer: descriptions taken apart by rule, claims checked by open questions."""

import math
from pathlib import Path

import pytest

from uni_dpo.demo.scene_checks import Looking, Rule, RuleOptions, opened
from uni_dpo.engine import Question
from uni_dpo.engine.asking import Check, Template
from uni_dpo.engine.pipelines.divide_and_conquer import DivideAndConquer, DivideAndConquerOptions
from uni_dpo.engine.records import Answered, Aside
from uni_dpo.models.backends.base import Failure, Request
from uni_dpo.settings.reading import read_mapping

TRUTH = "Two shapes. Red disc top left. Blue cross bottom right."


class Seer:
    """Is sure of nothing: gives the right word twice the probability of each other one."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def choice_logprobs(self, requests: list[Request], choices: dict[str, tuple[str, ...]]) -> list[dict | Failure]:
        true = {"Shapes?": "two", "Colour top left?": "red", "Shape top left?": "disc", "Colour top right?": "no"}
        self.asked += [request.prompt for request in requests]
        return [
            Failure("gone")
            if request.prompt not in true
            else {word: math.log(0.2 if word == true[request.prompt] else 0.1) for word in choices}
            for request in requests
        ]


@pytest.mark.parametrize(
    ("closed", "found"),
    [
        ("Red top left?", ("Colour top left?", "red")),
        ("Ring bottom right?", ("Shape bottom right?", "ring")),
        ("Two shapes?", ("Shapes?", "two")),
        ("One shape?", ("Shapes?", "one")),
        ("Red top?", None),
        ("Two discs?", None),
        ("Purple top left?", None),
        ("?", None),
    ],
)
def test_a_closed_question_is_opened(closed: str, found: tuple[str, str] | None) -> None:
    assert opened(closed) == found


def test_claims_are_as_probable_as_the_word_that_they_say() -> None:
    seer = Seer()
    looking = Looking({"checker": seer}, Template("{question}"), seed=0)  # type: ignore[dict-item]
    closed = ("Red top left?", "Blue top left?", "Ring top left?", "Three shapes?", "Green top right?", "Is it?")
    *told, odd = looking.check([Check(question, ("a.png",)) for question in (*closed, "Red bottom left?", "Odd")][:6])
    assert told == pytest.approx([2 / 6, 1 / 6, 1 / 5, 1 / 4, 1 / 6])  # of four colours and nothing, three shapes …
    assert isinstance(odd, Aside)
    assert isinstance(looking.check([Check("Red bottom left?")])[0], Failure)
    again = Seer()
    Looking({"checker": again}, Template("{question}"), 0).check([Check("Red top left?")] * 3)  # type: ignore[dict-item]
    assert again.asked == ["Colour top left?"]


def test_a_description_is_scored_by_what_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the settings of the recipe; what is no claim about a picture counts neither for nor against its answer."""
    monkeypatch.chdir(Path(__file__).parents[2])
    recipe = read_mapping("examples/align/scenes_divide.yaml")["engine"]["reward"]
    rule = Rule(RuleOptions())
    options = DivideAndConquerOptions(**recipe)
    pipeline = DivideAndConquer(options, {"splitter": rule, "asker": rule, "checker": Seer()}, 0)  # type: ignore[dict-item]
    said = ("Two shapes. Red disc top left.", "Three shapes. Red ring top left.", "Nothing to see here.")
    scored = pipeline.reward([Answered(Question("q", "?", ("a.png",), TRUTH), said)])[0]
    assert not isinstance(scored, Failure)
    assert [answer.score for answer in scored.answers] == pytest.approx(
        [5 * (2 / 4 + 2 / 6 + 2 / 5) / 3, 5 * (1 / 4 + 2 / 6 + 1 / 5) / 3]
    )
    assert [aside.text for aside in scored.aside] == ["Nothing to see here?"]
