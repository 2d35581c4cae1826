"""Whole runs against a real server: every pipeline, and every way in which a server can fail."""

import base64
import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest

from uni_dpo.engine import run_engine
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import make_backend

ROLES = {
    "divide_and_conquer": ("sampler", "splitter", "asker", "checker"),
    "judge": ("sampler", "judge"),
    "dpo_reward": ("sampler", "aligned", "reference"),
}


def config(server, pipeline, **changes):
    model = {
        "backend": "openai",
        "model": "m",
        "base_url": server.url,
        "timeout": 0.5,
        "backoff": 0.01,
        "max_retries": 3,
        "concurrency": 4,
    }
    return {
        "pipeline": pipeline,
        "models": dict.fromkeys(ROLES[pipeline], model),
        "sample": {"n": 3},
        "pairs": {"min_gap": 0.5},
        "batch_size": 4,
        **changes,
    }


def pairs_of(work):
    return json.loads((work / "dataset" / "pairs.json").read_text())


def flaky(body, attempt):
    """Half of all requests fail once or twice, each in its own way, and then get through."""
    draw = hashlib.sha256(json.dumps(body["messages"]).encode()).digest()
    kinds = (500, 429, "truncated", "no_choices", "html", "timeout" if draw[1] < 32 else 503)
    return kinds[draw[0] % 6] if draw[2] % 2 and attempt < 1 + draw[3] % 2 else None


@pytest.mark.parametrize(
    ("pipeline", "reward"),
    [("divide_and_conquer", {}), ("judge", {"method": "grade"}), ("judge", {"method": "compare"})],
)
def test_a_flaky_server_gives_the_same_pairs_as_a_good_one(chat_server, questions, tmp_path, pipeline, reward):
    run_engine(config(chat_server(), pipeline, reward=reward), tmp_path / "calm", questions=questions)
    spec = config(chat_server(fault=flaky), pipeline, reward=reward)
    result = run_engine(spec, tmp_path / "flaky", questions=questions)
    assert pairs_of(tmp_path / "flaky") == pairs_of(tmp_path / "calm")
    usage = result.report["reward"]["usage"]
    assert usage["retries"] > 0
    assert usage["failures"] == 0
    assert sum(usage["faults"].values()) == usage["retries"]
    assert {"HTTP 500", "HTTP 429", "malformed reply"} <= usage["faults"].keys()


def test_the_judges_position_bias_is_reported(chat_server, questions, tmp_path):
    spec = config(chat_server(), "judge", reward={"method": "compare"})
    result = run_engine(spec, tmp_path, questions=questions)
    summary = result.report["reward"]["summary"]
    assert summary["pairs"] == 12 * 3
    assert -1 <= summary["bias"] <= 1


def test_dpo_reward_against_a_served_model(chat_server, served, questions, tiny_qwen2_vl, tmp_path):
    """Log-probabilities through the server give the rewards that the same models give in this process."""
    from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl

    other = write_tiny_qwen2_vl(tmp_path / "other", seed=1)
    paths = {"sampler": tiny_qwen2_vl, "aligned": other, "reference": tiny_qwen2_vl}
    servers = {role: chat_server(served(make_backend({"model": str(path)}))) for role, path in paths.items()}
    remote = {
        role: {"backend": "openai", "model": "m", "base_url": server.url, "timeout": 60, "concurrency": 2}
        for role, server in servers.items()
    }
    pairs = {"max_mean_word_difference": 10}
    spec = {"pipeline": "dpo_reward", "sample": {"n": 4, "max_tokens": 5}, "reward": {"beta": 1.0}, "pairs": pairs}
    run_engine({**spec, "models": remote}, tmp_path / "remote", questions=questions[:4])
    sampled = [json.loads(line) for line in (tmp_path / "remote/0-sample.jsonl").read_text().splitlines()]
    given = {row["id"]: tuple(row["answers"]) for row in sampled if "answers" in row}
    local = {role: {"model": str(path)} for role, path in paths.items()}
    with_answers = [replace(q, answers=given[q.id]) for q in questions[:4]]
    run_engine({**spec, "models": local, "sample": {"sampler": "given"}}, tmp_path / "local", questions=with_answers)
    one, two = pairs_of(tmp_path / "remote"), pairs_of(tmp_path / "local")
    assert len(one) == len(two) > 0
    for theirs, ours in zip(one, two, strict=True):
        assert (theirs["chosen"], theirs["rejected"]) == (ours["chosen"], ours["rejected"])
        assert theirs["score_chosen"] == pytest.approx(ours["score_chosen"], abs=1e-3)


@pytest.mark.parametrize(("fault", "reason"), [(500, "HTTP 500"), ("empty", "empty answer"), ("refusal", "refusal")])
def test_over_the_share_of_failures_the_run_stops_with_the_reason(chat_server, questions, tmp_path, fault, reason):
    server = chat_server(fault=lambda body, attempt: fault)
    with pytest.raises(UniDPOError, match=rf"12 of 12 questions yielded nothing.*{reason}"):
        run_engine(config(server, "judge"), tmp_path, questions=questions)
    assert not (tmp_path / "dataset" / "pairs.json").exists()
    assert len(server.bodies) == 12 * 4


def test_under_the_share_the_rest_is_kept_and_the_failures_are_reported(chat_server, questions, tmp_path):
    unlucky = hashlib.sha256(Path(questions[5].images[0]).read_bytes()).digest()

    def fault(body, attempt):
        content = body["messages"][0]["content"]
        image = base64.b64decode(content[0]["image_url"]["url"].partition(",")[2]) if len(content) == 2 else b""
        return 500 if hashlib.sha256(image).digest() == unlucky else None

    result = run_engine(config(chat_server(fault=fault), "judge"), tmp_path, questions=questions)
    assert result.report["sample"]["failed"] == 1
    assert result.warnings[0] == "stage 0 (sample): 1 of 12 questions yielded nothing"
    assert questions[5].id not in {row["question_id"] for row in pairs_of(tmp_path)}


def test_unparsable_replies_are_asked_again_counted_and_kept(chat_server, scripted_brain, questions, tmp_path):
    def rambling(body):
        reply = scripted_brain(body)
        for choice in reply["choices"]:
            if choice["message"]["content"][-1] in "3456789":
                choice["message"]["content"] = "Quite good, I should say."
        return reply

    server = chat_server(rambling)
    result = run_engine(config(server, "judge", max_failed_share=1.0), tmp_path, questions=questions)
    aside = [json.loads(line) for line in (tmp_path / "aside" / "1-reward.jsonl").read_text().splitlines()]
    grades = [body for body in server.bodies if "Score: <number>" in str(body["messages"])]
    assert len(grades) > 12 * 3  # some were asked twice
    assert result.report["reward"]["aside"]["no score"] == len(aside) > 0
    assert {line["text"] for line in aside} <= {"Quite good, I should say."}
