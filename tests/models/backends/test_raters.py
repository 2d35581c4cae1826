"""Reward models in the engine's roles: refused early, loaded by the worker, noticed when they change."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from uni_dpo.data.checks.preflight import preflight
from uni_dpo.demo.tiny_model import write_tiny_text_model
from uni_dpo.engine import EngineConfig, Question, run_engine
from uni_dpo.errors import UniDPOError
from uni_dpo.models.rewards import load_reward_model
from uni_dpo.models.rewards.options import Conversation, RewardModelOptions

QUESTIONS = [
    Question(str(n), f"one two {n}?", reference=str(n), answers=(f"so {n}", f"thus {n}.\n\n\\boxed{{{n}}}", "two", "2"))
    for n in range(5)
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raters")
    for kind in ("reward_model", "process_reward", "writer"):
        write_tiny_text_model(folder / kind, kind, spread=0.5)
    return folder


def config(pipeline, model, **changes):
    role = {"reward_model": "reward", "process_reward": "process"}[pipeline]
    return {"pipeline": pipeline, "sample": {"sampler": "given"}, "models": {role: {"model": str(model)}}, **changes}


def test_the_rated_pairs_train_as_they_are(models, tmp_path):
    """The pair of each question is that of the best and the worst rating of the model itself, and carries both."""
    result = run_engine(config("reward_model", models / "reward_model"), tmp_path, questions=QUESTIONS, debug=True)
    pairs = {pair["question_id"]: pair for pair in json.loads(result.pairs.read_text())}
    model = load_reward_model(RewardModelOptions(models / "reward_model"))
    for question in QUESTIONS:
        ratings = [model.rate([Conversation(question.text, answer)])[0] for answer in question.answers]
        best, worst = max(ratings), min(ratings)
        pair = pairs[question.id]
        assert (pair["score_chosen"], pair["score_rejected"]) == pytest.approx((best, worst), abs=1e-4)
        assert pair["chosen"] == question.answers[ratings.index(best)]
        assert pair["rejected"] == question.answers[ratings.index(worst)]
    assert preflight(["uni_dpo_engine"], tmp_path / "dataset").scored == len(QUESTIONS)
    (debug,) = (tmp_path / "debug").glob("reward-reward-*.jsonl")
    line = json.loads(debug.read_text().splitlines()[0])
    assert (line["call"], line["answer"], type(line["reply"])) == ("rate", QUESTIONS[0].answers[0], float)


def test_a_value_head_rates_answers_about_images(tiny_qwen2_vl, digits, tmp_path):
    import torch
    from safetensors.torch import save_file

    folder = shutil.copytree(tiny_qwen2_vl, tmp_path / "reward")
    torch.manual_seed(0)
    head = {"v_head.summary.weight": torch.randn(1, 128), "v_head.summary.bias": torch.zeros(1)}
    save_file(head, folder / "value_head.safetensors", metadata={"format": "pt"})
    seen = [
        Question(digit.image.stem, "Which digit?", (str(digit.image),), answers=("two", "The digit is three.", "four"))
        for digit in digits["preference"][:3]
    ]
    pairs = json.loads(run_engine(config("reward_model", folder), tmp_path / "work", questions=seen).pairs.read_text())
    model = load_reward_model(RewardModelOptions(folder))
    for pair, question in zip(pairs, sorted(seen, key=lambda question: question.id), strict=True):
        asked = [Conversation("<image>Which digit?", answer, question.images) for answer in question.answers]
        ratings = [model.rate([conversation])[0] for conversation in asked]
        assert (pair["score_chosen"], pair["score_rejected"]) == pytest.approx((max(ratings), min(ratings)), abs=1e-4)
        assert pair["instruction"] == "<image>Which digit?"


def scores(work):
    """Every score of a run, in the order of questions and answers."""
    lines = (work / "1-reward.jsonl").read_text().splitlines()
    rows = sorted((json.loads(line) for line in lines if '"commit"' not in line), key=lambda row: row["id"])
    assert [row["id"] for row in rows] == [question.id for question in QUESTIONS]
    assert all(len(row["answers"]) == 4 for row in rows)
    return [answer["score"] for row in rows for answer in row["answers"]]


@pytest.mark.parametrize("pipeline", ["reward_model", "process_reward"])
def test_the_batch_size_changes_nothing(models, tmp_path, pipeline):
    spec = config(pipeline, models / pipeline)
    (role,) = spec["models"]
    for size in (1, 7):
        spec["models"][role]["batch_size"] = size
        run_engine(spec, tmp_path / str(size), questions=QUESTIONS)
    assert scores(tmp_path / "1") == pytest.approx(scores(tmp_path / "7"), abs=1e-3)


@pytest.mark.slow  # it starts Ray
def test_rows_over_ray_equal_those_of_one_process(models, tmp_path):
    """The grader's process and the process reward model both live in the worker; Ray lives in a process of its own."""
    spec = config("process_reward", models / "process_reward", batch_size=2)
    run_engine(spec, tmp_path / "local", questions=QUESTIONS)
    rows = [{"question_id": q.id, "question": q.text, "answer": q.reference, "answers": q.answers} for q in QUESTIONS]
    (tmp_path / "questions.json").write_text(json.dumps(rows))
    spec |= {"engine": "ray", "ray": {"workers": 1}, "input": {"path": str(tmp_path / "questions.json")}}
    (tmp_path / "ray.yaml").write_text(json.dumps(spec))
    command = [sys.executable, "-m", "uni_dpo.cli", "engine", "run", tmp_path / "ray.yaml"]
    subprocess.run([*command, "--work-dir", tmp_path / "ray"], check=True, timeout=300)
    assert scores(tmp_path / "ray") == scores(tmp_path / "local")


def test_a_retrained_reward_model_makes_its_stage_stale(models, tmp_path):
    folder = shutil.copytree(models / "reward_model", tmp_path / "model")
    spec = config("reward_model", folder)
    run_engine(spec, tmp_path / "work", questions=QUESTIONS)
    run_engine(
        {**spec, "models": {"reward": {"model": str(folder), "batch_size": 3}}}, tmp_path / "work", questions=QUESTIONS
    )
    os.utime(folder / "model.safetensors", ns=(0, 0))
    with pytest.raises(UniDPOError, match=r"stage 1 \(reward\): models.reward was"):
        run_engine(spec, tmp_path / "work", questions=QUESTIONS)


@pytest.mark.parametrize(
    ("pipeline", "model", "words"),
    [
        ("reward_model", "gone", "there is no such folder"),
        ("reward_model", "writer", "is no reward model"),
        ("process_reward", "gone", "there is no such folder"),
        ("process_reward", "writer", "is no process reward model"),
        ("process_reward", "reward_model", "is no process reward model"),
    ],
)
def test_what_cannot_rate_is_refused_before_anything_is_sampled(models, tmp_path, pipeline, model, words):
    spec = config(pipeline, models / model, sample={})
    spec["models"]["sampler"] = {"model": str(models / "writer")}
    with pytest.raises(UniDPOError, match=words):
        run_engine(spec, tmp_path / "work", questions=QUESTIONS)
    assert not (tmp_path / "work" / "0-sample.jsonl").exists()


@pytest.mark.parametrize("pipeline", ["reward_model", "process_reward"])
def test_images_that_a_text_model_would_not_see_are_refused(models, tmp_path, digits, pipeline):
    seen = [Question("x", "Which?", (str(digits["train"][0].image),), "1", answers=("1", "2"))]
    with pytest.raises(UniDPOError, match="sees no images or videos, and the questions have some"):
        run_engine(config(pipeline, models / pipeline), tmp_path / "work", questions=seen)


@pytest.mark.parametrize(
    ("pipeline", "models", "words"),
    [
        (
            "reward_model",
            {"reward": {"backend": "vllm", "model": "m"}},
            r"models\.reward\.backend: vllm does not fit here; only the backend reward_model fits this role",
        ),
        (
            "verifiable",
            {"sampler": {"backend": "reward_model", "model": "m"}},
            r"models\.sampler\.backend: reward_model does not fit here; it rates answers and writes none",
        ),
        (
            "process_reward",
            {"process": {"model": "m", "step_tokn": "x"}},
            r"models\.process\.step_tokn: unknown setting; did you mean 'step_token'",
        ),
        ("process_reward", {}, r"models\.process: the process_reward pipeline needs a model in this role"),
    ],
)
def test_a_model_that_does_not_fit_its_role_is_named(pipeline, models, words):
    with pytest.raises(UniDPOError, match=words):
        EngineConfig({"pipeline": pipeline, "sample": {"sampler": "given"}, "models": models})


def test_training_asks_what_was_asked_in_sampling(models, tmp_path):
    spec = config("reward_model", models / "reward_model", dataset={"prompt": "math"})
    pairs = json.loads(run_engine(spec, tmp_path, questions=QUESTIONS).pairs.read_text())
    assert pairs[0]["instruction"].startswith("one two 0?\n\nReason step by step")
    assert pairs[0]["instruction"].endswith("\\boxed{}.")
    with pytest.raises(UniDPOError, match="prompt 'maths': no such file"):
        EngineConfig({**spec, "dataset": {"prompt": "maths"}})
