"""Whole runs: what is learnt, going on after a stop, and faults before a model is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from uni_dpo.data.questions import InputOptions
from uni_dpo.engine import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.grpo import trainer
from uni_dpo.grpo.trainer import reward_line, train_grpo
from uni_dpo.online import RewardOptions


@pytest.fixture
def asked(questions: list[Question], tmp_path: Path) -> Callable[[int], InputOptions]:
    """`asked(n)` is a file of the first n questions."""

    def write(count: int) -> InputOptions:
        rows = [
            {"id": q.id, "question": q.text, "images": list(q.images), "answer": q.reference} for q in questions[:count]
        ]
        (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
        return InputOptions(str(tmp_path / "questions.jsonl"))

    return write


def numbers(log: list[dict[str, Any]]) -> list[list[float]]:
    return [[line[name] for name in ("loss", "reward", "kl", "grad_norm")] for line in log if "loss" in line]


def length(answer: str, question: Question) -> float:
    """A reward that differs between answers of an untrained model."""
    return len(answer) / 10


@pytest.mark.parametrize("finetuning", ["full", "lora"])
def test_a_stopped_run_goes_on_to_the_same_numbers(
    settings: Any,
    asked: Any,
    finetuning: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(trainer, "make_reward", lambda *_, **__: run_length)
    common = {"finetuning": finetuning, "questions": asked(12), "save_strategy": "steps", "save_steps": 2, "beta": 0.1}
    whole = train_grpo(settings(**common, max_steps=4, output_dir=str(tmp_path / "whole")))
    stopped = common | {"output_dir": str(tmp_path / "stopped")}
    train_grpo(settings(**stopped, max_steps=2))
    assert "going on" not in capsys.readouterr().out
    resumed = train_grpo(settings(**stopped, max_steps=4))
    assert f"resuming from {tmp_path / 'stopped' / 'checkpoint-2'}\n" in capsys.readouterr().out
    assert len(numbers(resumed)) == 4
    for left, right in zip(numbers(resumed), numbers(whole), strict=True):
        assert left == pytest.approx(right, rel=1e-3, abs=1e-5)
    assert len({line[3] for line in numbers(whole)}) == 4
    with pytest.raises(UniDPOError, match="other settings"):
        train_grpo(settings(**stopped | {"beta": 0.2}))


def test_a_finished_run_is_not_trained_further(
    settings: Any, asked: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    chosen = settings(questions=asked(4), save_strategy="steps", save_steps=1, max_steps=2, beta=0.1)
    log = train_grpo(chosen)
    monkeypatch.setattr(trainer, "load_model", lambda *_: pytest.fail("loaded"))
    assert numbers(train_grpo(chosen)) == numbers(log)
    assert "all 2 steps are done; nothing is trained" in capsys.readouterr().out
    assert not (tmp_path / "out" / "checkpoint-3").exists()


def test_the_closing_line_is_of_logged_steps_only(settings: Any, asked: Any) -> None:
    """TRL puts what no step has logged into its summary."""
    (summary,) = train_grpo(settings(questions=asked(4), max_steps=1, logging_steps=5))
    assert "reward" in summary
    assert "no step was logged" in reward_line([summary])
    steps = [{"loss": 0.1, "reward": 0.25}, {"loss": 0.1}, {"loss": 0.1, "reward": 0.5}]
    assert reward_line([*steps, summary]) == "reward: 0.250 in the first line of the log, 0.500 in the last"


def run_length(questions: list[Question], answers: list[str]) -> list[float]:
    return [length(answer, question) for question, answer in zip(questions, answers, strict=True)]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"questions": InputOptions("nowhere.jsonl")}, "nowhere.jsonl: no such file"),
        ({"reward": RewardOptions(model="nowhere")}, "nowhere: there is no such folder"),
        ({"reward": RewardOptions(function="multiple_choice")}, "is none of the options"),
        ({"reward": RewardOptions(function="nowhere:grade")}, "nowhere"),
        ({"model": "no/such-model"}, "model 'no/such-model' cannot be loaded"),
    ],
)
def test_faults_are_named_before_a_model_is_loaded(
    settings: Any, asked: Any, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], words: str
) -> None:
    for name in ("load_model", "make_reward"):
        monkeypatch.setattr(trainer, name, lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UniDPOError, match=words):
        train_grpo(settings(**({"questions": asked(4)} | changes)))


@pytest.mark.slow
def test_grpo_raises_the_reward(warm_policy: Path, settings: Any, asked: Any, tmp_path: Path) -> None:
    """Twelve rounds of 64 questions with four answers each; each round is learnt from eight times."""
    chosen = settings(
        model=str(warm_policy),
        questions=asked(600),
        per_device_train_batch_size=64,
        generation_batch_size=256,
        num_iterations=2,
        max_steps=96,
        max_completion_length=8,
        learning_rate=3e-4,
        beta=0.02,
    )
    log = train_grpo(chosen)
    rewards = [line["reward"] for line in log if "reward" in line]
    assert len(rewards) == 12
    before, after = fmean(rewards[:3]), fmean(rewards[-3:])
    *kls, _ = sorted(line["kl"] for line in log if "kl" in line)  # in one step a single unlikely token can give 40
    print(f"reward {before:.2f} in the first three rounds, {after:.2f} in the last three; KL at most {kls[-1]:.2f}")
    assert after > before + 0.07
    assert kls[-1] < 3
    assert (Path(chosen.output_dir) / "model.safetensors").is_file()
