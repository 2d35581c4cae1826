"""An answer that the limit of tokens cut is counted, may be rejected, and is chosen only where settings allow it."""

import json

import pytest

from uni_dpo.engine import Answered, Pipeline, Question, Scored, ScoredAnswer, register, run_engine
from uni_dpo.engine.asking import ask
from uni_dpo.engine.pairing import PairOptions, choose_pairs
from uni_dpo.engine.pipelines.dpo_reward import DpoRewardPairs, rank_pairs
from uni_dpo.engine.records import Aside
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import Request, Sample


def scored(*scores, cut=()):
    """Answers `a`, `b` … with these scores; those in `cut` did not end."""
    names = "abcdefgh"[: len(scores)]
    return [
        ScoredAnswer(name, score, {"sum": score, "mean": score}, cut=name in cut)
        for name, score in zip(names, scores, strict=True)
    ]


def told(pairs):
    return [f"{pair.chosen}>{pair.rejected}" for pair in pairs]


def test_gap_pairs_reject_cut_answers_and_choose_none():
    answers = scored(9, 6, 3, cut="ac")
    assert told(choose_pairs("q", answers, PairOptions(1, 9), seed=0)) == ["b>c"]
    allowed = PairOptions(1, 9, allow_cut_answers=True)
    assert told(choose_pairs("q", answers, allowed, seed=0)) == ["a>b", "a>c", "b>c"]


@pytest.mark.parametrize(
    ("cut", "pairs"),
    [("", ["a>e", "b>d"]), ("a", ["b>e", "c>d"]), ("ab", ["c>e"]), ("abcd", []), ("de", ["a>e", "b>d"])],
)
def test_the_next_best_takes_the_place_of_a_cut_answer(cut, pairs):
    answers = scored(9, 8, 7, 6, 5, cut=cut)
    assert told(choose_pairs("q", answers, PairOptions(0, 9, "best_worst"), seed=0)) == pairs


def test_the_settings_may_allow_them():
    answers = scored(9, 3, cut="a")
    for choose in ("any", "best_worst"):
        assert choose_pairs("q", answers, PairOptions(choose=choose), seed=0) == []
        allowed = PairOptions(choose=choose, allow_cut_answers=True)
        assert told(choose_pairs("q", answers, allowed, seed=0)) == ["a>b"]


@pytest.mark.parametrize("choose", ["ranked", "published"])
def test_rank_pairs_choose_none_either(choose):
    answers = scored(9, 8, 3, 2, cut="ac")
    chosen = {pair.chosen for pair in rank_pairs("q", answers, DpoRewardPairs(choose=choose, rank=2))}
    assert chosen == {"b"}
    allowed = DpoRewardPairs(choose=choose, rank=2, allow_cut_answers=True)
    assert {pair.chosen for pair in rank_pairs("q", answers, allowed)} == {"a", "b"}


def test_of_near_duplicates_the_one_that_ended_stays():
    words = " ".join(f"w{number}" for number in range(60))
    answers = [
        ScoredAnswer(words, 9, {"sum": 9, "mean": 9}, cut=True),
        ScoredAnswer(f"{words} end.", 8, {"sum": 8, "mean": 8}),
        ScoredAnswer("no", 1, {"sum": 1, "mean": 1}),
    ]
    (pair,) = rank_pairs("q", answers, DpoRewardPairs(max_word_difference=99))
    assert pair.chosen == f"{words} end."


def test_a_wording_that_ended_once_is_not_cut():
    answered = Answered(Question("q", "?"), ("a  b", "c", "a b", "d"), cut=(0, 3))
    assert answered.cut_wordings == {"d"}


def test_a_judge_that_was_cut_has_said_nothing():
    class Model:
        asked = 0

        def generate(self, requests, sampling):
            self.asked += 1
            return [[Sample("Score: 1", 4, request.prompt != "cut")] for request in requests]

    model = Model()
    replies = ask(model, [Request("cut"), Request("whole")], lambda text: text, what="score", max_tokens=4)
    assert replies == [Aside("score cut at max_tokens", "Score: 1"), "Score: 1"]
    assert model.asked == 2


@register("pipeline", "first_is_best")
class FirstIsBest(Pipeline):
    """Pairs in a way of its own, and does not look whether an answer was cut."""

    RewardOptions = DpoRewardPairs

    def reward(self, items):
        return [Scored(tuple(ScoredAnswer(text, -float(place)) for place, text in enumerate(i.answers))) for i in items]


def cutting(body):
    """The longer of two answers is cut."""
    texts = (("It is a long way to the e", "length"), ("Short.", "stop"), ("No", "stop"))
    return {
        "choices": [
            {"index": i, "finish_reason": why, "message": {"role": "assistant", "content": text}}
            for i, (text, why) in enumerate(texts)
        ]
    }


def config(server, **pairs):
    model = {"backend": "openai", "model": "m", "base_url": server.url, "max_retries": 0}
    return {
        "pipeline": "first_is_best",
        "models": {"sampler": model},
        "sample": {"n": 3},
        "pairs": {"max_pairs_per_question": 9, **pairs},
    }


def pairs_in(work):
    rows = json.loads((work / "dataset" / "pairs.json").read_text())
    return {(row["chosen"], row["rejected"]) for row in rows}


def test_a_run_carries_the_cut_to_the_pairs_and_says_so(chat_server, questions, tmp_path):
    server = chat_server(cutting)
    result = run_engine(config(server), tmp_path, questions=questions)
    assert pairs_in(tmp_path) == {("Short.", "No")}
    assert result.report["pair"]["cut answers"] == len(questions)
    (warning,) = result.warnings
    assert f"{len(questions)} answers were cut at sample.max_tokens and are never chosen" in warning
    result = run_engine(config(server, allow_cut_answers=True), tmp_path, questions=questions)
    assert ("It is a long way to the e", "Short.") in pairs_in(tmp_path)
    assert "may be chosen as they are" in result.warnings[0]
    assert len(server.bodies) == len(questions), "the answers are those of the first run"


def test_rows_of_an_earlier_version_are_used_as_they_are(chat_server, questions, tmp_path):
    run_engine(config(chat_server(cutting)), tmp_path, questions=questions, run_stage=0)
    path = tmp_path / "0-sample.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({k: v for k, v in row.items() if k != "cut"}) + "\n" for row in rows))
    result = run_engine(config(chat_server(cutting)), tmp_path, questions=questions)
    assert ("It is a long way to the e", "Short.") in pairs_in(tmp_path)
    assert "may be chosen as they are" in result.warnings[0]


def test_where_all_answers_were_cut_that_is_the_cause(chat_server, questions, tmp_path):
    def all_cut(body):
        reply = cutting(body)
        for choice in reply["choices"]:
            choice["finish_reason"] = "length"
        return reply

    with pytest.raises(UniDPOError, match=r"no pairs came of 12 questions: all 36 answers were cut at sample\.max_tok"):
        run_engine(config(chat_server(all_cut)), tmp_path, questions=questions)
