"""Rewards: what is refused beforehand, and what a reward model is shown."""

from collections.abc import Sequence
from typing import Any

import pytest

from uni_dpo.engine import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import base
from uni_dpo.models.rewards.options import Conversation
from uni_dpo.online import RewardOptions
from uni_dpo.online.policy import check_reward, graded, make_reward

QUESTIONS = [Question("a", "Two and two?", ("1.png", "2.png"), "4"), Question("b", "Three?", (), "3")]


@pytest.mark.parametrize(
    ("options", "questions", "words"),
    [
        (RewardOptions(function="exact"), [*QUESTIONS, Question("c", "Four?")], "question c: grading needs"),
        (RewardOptions(function="numeric"), [Question("a", "Many?", (), "some")], "holds no number"),
        (RewardOptions(function="no_such"), QUESTIONS, "no_such"),
        (RewardOptions(model="nowhere"), QUESTIONS, "nowhere: there is no such folder"),
    ],
)
def test_a_reward_that_cannot_be_had_is_named(options: RewardOptions, questions: list[Question], words: str) -> None:
    with pytest.raises(UniDPOError, match=words):
        check_reward(options, questions)


def test_a_function_needs_what_it_needs() -> None:
    check_reward(RewardOptions(function="exact"), QUESTIONS)
    check_reward(RewardOptions(function="uni_dpo.demo.digits:closeness"), [Question("c", "Four?")])


def test_an_answer_that_cannot_be_graded_earns_nothing() -> None:
    reward = make_reward(RewardOptions(function="numeric"), batch_size=8)
    assert reward(QUESTIONS, ["It is 4.", "no idea"]) == [1.0, 0.0]


def test_a_reward_model_sees_the_images_before_the_text_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[Conversation]] = []

    class Model:
        def rate(self, conversations: Sequence[Conversation]) -> list[float]:
            seen.append(list(conversations))
            return [float(len(conversation.answer)) for conversation in conversations]

    monkeypatch.setattr(base, "load_reward_model", lambda _: Model())
    reward = make_reward(RewardOptions(model="m"), batch_size=2)
    assert reward([*QUESTIONS, QUESTIONS[1]], ["four", "3", "two"]) == [4.0, 1.0, 3.0]
    assert [len(batch) for batch in seen] == [2, 1]
    assert seen[0][0] == Conversation("<image><image>Two and two?", "four", ("1.png", "2.png"))
    assert seen[0][1].instruction == "Three?"
    reward([Question("s", "Four?", system="Be brief.")], ["4"])
    assert seen[-1][0].system == "Be brief."
    monkeypatch.setattr(Model, "rate", lambda self, conversations: [float("nan")])
    with pytest.raises(UniDPOError, match="reward: nan for the answer '4'; a finite number belongs there"):
        make_reward(RewardOptions(model="m"), batch_size=2)(QUESTIONS[:1], ["4"])


@pytest.mark.parametrize(
    ("given", "expected"), [(None, 0.0), (True, 1.0), ("0.5", 0.5), (float("inf"), ...), ("x", ...)]
)
def test_the_reward_of_an_own_function_is_a_finite_number(given: Any, expected: Any) -> None:
    rate = graded(lambda answer, question: given)
    if expected is not ...:
        assert rate(QUESTIONS[:1], ["4"]) == [expected]
        return
    with pytest.raises(UniDPOError, match="a finite number belongs there"):
        rate(QUESTIONS[:1], ["4"])
