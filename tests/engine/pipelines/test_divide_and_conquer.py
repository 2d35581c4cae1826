import pytest

from uni_dpo.engine import Question
from uni_dpo.engine.pipelines.divide_and_conquer import (
    DivideAndConquer,
    DivideAndConquerOptions,
    parse_claims,
    parse_question,
    score,
)
from uni_dpo.engine.records import Answered, ScoredAnswer
from uni_dpo.models.backends import Failure, Sample


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 8.0),  # 10 − 2 refuted
        ({"score": "soft"}, 4.625),  # 10 · (0.9 + 0.2 + 0.5 + 0.25) / 4
        ({"low": 9.0}, 9.0),  # not below low
        ({"points_per_refuted": 2.5}, 5.0),
        ({"score": "soft", "low": 1.0, "high": 5.0}, 2.85),  # 1 + 4 · 0.4625
    ],
)
def test_scores_by_hand(options, expected):
    # 0.2 and 0.25 are refuted; a claim at exactly one half is not.
    assert score([0.9, 0.2, 0.5, 0.25], DivideAndConquerOptions(**options)) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("reply", "claims"),
    [
        ("- A cat.\n- A dog.", ["A cat.", "A dog."]),
        ("1. A cat.\n\n2) A dog.", ["A cat.", "A dog."]),
        ("* A cat.\n* A cat.", ["A cat."]),
        ("Here you are:\n- A cat.", None),
        ("Facts:\n- A cat.", ["A cat."]),
        ("### Facts:\n- A cat.\n- A dog.\n", ["A cat.", "A dog."]),
        ("Here you are.\n\n**Facts:**\n1. A cat.", ["A cat."]),
        ("### Question: What?\n### Facts: - A cat.\n- A dog.", ["A cat.", "A dog."]),
        ("### Facts:", None),
        ("A cat.", None),
        ("-", None),
        ("", None),
    ],
)
def test_claims_are_parsed_strictly(reply, claims):
    assert parse_claims(reply) == claims


@pytest.mark.parametrize(
    ("reply", "question"),
    [
        (" Is it? ", "Is it?"),
        ("Is it", None),
        ("Is it?\nYes?", None),
        ("?", None),
        ("", None),
        ("### Modified sentences:\n- Is it?", "Is it?"),
        ("Question: Is it?", "Question: Is it?"),
        ("是猫吗？", "是猫吗？"),
        ("### Modified sentences:\n- Is it?\n- Or not?", None),
    ],
)
def test_questions_are_parsed_strictly(reply, question):
    assert parse_question(reply) == question


class Model:
    """Splits at full stops, asks `IS <claim>?`, and gives yes the probability written in the claim."""

    def __init__(self):
        self.seen = []

    def generate(self, requests, sampling):
        return [self._reply(request.prompt) for request in requests]

    def _reply(self, prompt):
        if prompt.startswith("ask"):
            claim = prompt.removeprefix("ask ")
            return [Sample("cannot" if "odd" in claim else f"IS {claim}?", 1, True)]
        answer = prompt.removeprefix("split ")
        if answer == "gone":
            return Failure("split failed")
        return [Sample("\n".join(f"- {part.strip()}" for part in answer.split(".") if part), 1, True)]

    def choice_logprobs(self, requests, choices):
        self.seen += [(request.prompt, request.images) for request in requests]
        logs = {"right": (-0.1, -3.0), "wrong": (-3.0, -0.1), "blank": (float("-inf"),) * 2}
        return [
            Failure("check failed")
            if "down" in request.prompt
            else dict(zip(("yes", "no"), next(v for k, v in logs.items() if k in request.prompt), strict=True))
            for request in requests
        ]


@pytest.fixture
def reward(tmp_path):
    for name, text in (("split", "split {answer}"), ("ask", "ask {claim}"), ("check", "{question}!")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    options = DivideAndConquerOptions(
        split_prompt=str(tmp_path / "split"), ask_prompt=str(tmp_path / "ask"), check_prompt=str(tmp_path / "check")
    )

    def run(*answers, model=None):
        model = model or Model()
        pipeline = DivideAndConquer(options, dict.fromkeys(("splitter", "asker", "checker"), model), 0)
        items = [Answered(Question(f"q{n}", "?", (f"{n}.png",)), texts) for n, texts in enumerate(answers)]
        return pipeline.reward(items)

    return run


def test_claims_are_checked_against_the_image_of_their_own_question(reward):
    model = Model()
    one, two = reward(("right a. wrong b",), ("wrong c. wrong d", "right e"), model=model)
    assert [a.score for a in one.answers] == [9.0]
    assert [(a.text, a.score) for a in two.answers] == [("wrong c. wrong d", 8.0), ("right e", 10.0)]
    assert model.seen[0] == ("IS right a?!", ("0.png",))
    assert model.seen[2] == ("IS wrong c?!", ("1.png",))
    claim = one.answers[0].detail["claims"][1]
    assert (claim["claim"], claim["question"]) == ("wrong b", "IS wrong b?")
    assert claim["p_yes"] < 0.5


def test_what_cannot_be_used_is_put_aside_and_does_not_count(reward):
    (scored,) = reward(("right a. odd b", "odd c", "blank d. right e", "."))
    assert [(a.text, a.score) for a in scored.answers] == [("right a. odd b", 10.0), ("blank d. right e", 10.0)]
    assert sorted((a.reason, a.text) for a in scored.aside) == [
        ("neither yes nor no", "IS blank d?"),
        ("no claims", ""),
        ("no question", "cannot"),
        ("no question", "cannot"),
    ]


@pytest.mark.parametrize("answer", ["gone", "down right"])
def test_a_failed_request_fails_its_question_only(reward, answer):
    failed, fine = reward(("right a", answer), ("right b",))
    assert isinstance(failed, Failure)
    assert fine.answers[0].score == 10.0


def test_a_checker_that_does_not_know_is_named() -> None:
    def answers(low: float, high: float, count: int = 10) -> list[ScoredAnswer]:
        claims = {"claims": [{"claim": "It is.", "question": "Is it?", "p_yes": p} for p in (low, high)]}
        return [ScoredAnswer(f"{number}", 5.0, claims) for number in range(count)]

    said = "the checker says P(yes) between 0.49 and 0.50 for all 20 claims: it does not know"
    assert DivideAndConquer.undecided(answers(0.494, 0.501)) == said
    assert DivideAndConquer.undecided(answers(0.2, 0.9)) is None
    assert DivideAndConquer.undecided(answers(0.494, 0.501, 9)) is None
