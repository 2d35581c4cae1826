import pytest

from uni_dpo.engine import Question
from uni_dpo.engine.pipelines.judge import (
    Judge,
    JudgeOptions,
    parse_grade,
    parse_verdict,
    position_bias,
    position_counts,
    win_shares,
)
from uni_dpo.engine.records import Answered, ScoredAnswer
from uni_dpo.engine.runner import _why_none
from uni_dpo.models.backends import Failure, Sample


@pytest.mark.parametrize(
    ("reply", "grade"),
    [
        ("Fine.\nGood.\nScore: 7", (7.0, "Fine. Good.")),
        ("score: 6.5/10", (6.5, "")),
        ("**Score:** 10", (10.0, "")),
        ("Score：8分", (8.0, "")),
        ("### Score: 8 out of 10.", (8.0, "")),
        ("Score: [8]", (8.0, "")),
        (r"Score: $\boxed{8}$", (8.0, "")),
        ("`Score = 8`", (8.0, "")),
        ("**Final Score:** 8", (8.0, "")),
        ("很好。\n评分：8分", (8.0, "很好。")),
        ('```json\n{"reason": "Fine.",\n"score": 8}\n```', (8.0, '```json {"reason": "Fine.",')),
        ("It is right. Score: 8", (8.0, "It is right.")),
        ("Score (0-10): 8", (8.0, "")),
        ("A perfect score: 10 would need more", None),
        ("The score is not Score: 8", None),
        ("Score: 11", None),
        ("Score: -1", None),
        ("Score: 8 or 9", None),
        ("Score: 4/5", None),
        ("Score: 7\nThank you.", None),
        ("7", None),
        ("", None),
    ],
)
def test_grades_are_parsed_strictly(reply, grade):
    assert parse_grade(reply) == grade


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("x\nVerdict: A", "first"),
        ("verdict: b.", "second"),
        ("**Verdict: tie**", "tie"),
        ("Verdict：[B]", "second"),
        ("Verdict: Answer A", "first"),
        ("Final verdict: [[A]]", "first"),
        ("The first is better. Verdict: A", "first"),
        ("Verdict: A or B", None),
        ("A", None),
        ("", None),
    ],
)
def test_verdicts_are_parsed_strictly(reply, verdict):
    assert parse_verdict(reply) == verdict


def test_win_shares_by_hand():
    verdicts = {
        (0, 1): ("first", "second"),  # 0 wins in both orders
        (0, 2): ("first", "first"),  # goes by position: half each
        (1, 2): ("second", "first"),  # 2 wins in both orders
    }
    assert win_shares(4, verdicts) == [0.75, 0.0, 0.75, None]


def test_a_judge_that_goes_by_position_moves_no_score():
    pairs = [(a, b) for a in range(4) for b in range(a + 1, 4)]
    assert win_shares(4, dict.fromkeys(pairs, ("first", "first"))) == [0.5] * 4


def test_position_bias_by_hand():
    counts = position_counts([("first", "first"), ("first", "second"), ("tie", "tie")])
    assert counts == {"pairs": 3, "first": 3, "second": 1, "tie": 2, "contradicted": 1}
    assert position_bias(counts) == {"pairs": 3, "bias": pytest.approx(2 / 6), "contradicted": pytest.approx(1 / 3)}


class Model:
    """Prefers the answer that comes later in the alphabet; cannot judge `?`; grades by position in it."""

    def generate(self, requests, sampling):
        return [self._reply(request.prompt.split("|")) for request in requests]

    def _reply(self, parts):
        if "down" in parts:
            return Failure("gone")
        if "?" in parts:
            return [Sample("hm", 1, True)]
        if len(parts) == 1:
            return [Sample(f"so\nScore: {ord(parts[0]) - ord('a')}", 1, True)]
        return [Sample(f"Verdict: {'A' if parts[0] > parts[1] else 'B'}", 1, True)]


@pytest.fixture
def reward(tmp_path):
    (tmp_path / "grade").write_text("{answer}", encoding="utf-8")
    (tmp_path / "compare").write_text("{first}|{second}", encoding="utf-8")

    def run(method, *answers):
        options = JudgeOptions(
            method=method, grade_prompt=str(tmp_path / "grade"), compare_prompt=str(tmp_path / "compare")
        )
        items = [Answered(Question(str(n), "?"), texts) for n, texts in enumerate(answers)]
        return Judge(options, {"judge": Model()}, 0).reward(items)

    return run


def test_grading(reward):
    one, two, three = reward("grade", ("b", "?"), ("down",), ("k",))
    assert [(a.text, a.score, a.detail["reasons"]) for a in one.answers] == [("b", 1.0, "so")]
    assert [(a.reason, a.text) for a in one.aside] == [("no score", "hm")]
    assert two == Failure("gone")
    assert three.answers[0].score == 10.0


def test_comparing(reward):
    one, two, three = reward("compare", ("b", "c", "a", "?"), ("x", "down"), ("z", "y"))
    assert [(a.text, a.score) for a in one.answers] == [("b", 5.0), ("c", 10.0), ("a", 0.0)]
    assert len(one.aside) == 6
    assert two == Failure("gone")
    assert [(a.text, a.score) for a in three.answers] == [("z", 10.0), ("y", 0.0)]
    summary = Judge.summarize([one.detail, three.detail])
    assert summary == {"pairs": 4, "bias": 0.0, "contradicted": 0.0}


def test_a_judge_that_says_the_same_of_all_answers_is_named() -> None:
    same = [ScoredAnswer(str(number), 5.0) for number in range(20)]
    assert Judge.undecided(same) == "all 20 answers have the score 5: the judge does not tell them apart"
    assert Judge.undecided(same[1:]) is None
    assert Judge.undecided([*same, ScoredAnswer("x", 6.0)]) is None


def test_replies_that_cannot_be_read_are_named_where_no_pair_comes_of_them():
    lost = [{"reason": "no score", "text": "I like it."}] * 2
    assert _why_none([], lost, lambda answer: True, None).startswith(
        "2 replies could not be read, such as no score in 'I like it.'"
    )
