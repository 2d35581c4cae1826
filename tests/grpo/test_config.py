"""What is ours and what is TRL's, and what neither has."""

from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.grpo.config import GRPOSettings, trl_arguments

GOOD = "model: m\noutput_dir: out\nreward: {function: exact}\nuse_cpu: true\n"


def load(tmp_path: Path, text: str) -> GRPOSettings:
    (tmp_path / "grpo.yaml").write_text(text)
    return GRPOSettings.load(tmp_path / "grpo.yaml")


def test_ours_and_trls(tmp_path: Path) -> None:
    text = "questions: {path: q.jsonl}\nseed: 3\nlearning_rate: 1e-5\nbeta: 0.04\nnum_generations: 4\n"
    settings = load(tmp_path, GOOD + text)
    assert settings.questions.path == "q.jsonl"
    assert settings.reward.function == "exact"
    arguments = trl_arguments(settings)
    assert (arguments.output_dir, arguments.seed, arguments.bf16) == ("out", 3, False)
    assert (arguments.learning_rate, arguments.beta, arguments.num_generations) == (1e-5, 0.04, 4)
    assert getattr(arguments, "max_prompt_length", None) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "num_generation: 4\n", "did you mean 'num_generations'"),
        (GOOD + "lora_rnk: 4\n", "did you mean 'lora_rank'"),
        (GOOD + "kl_coef: 0.1\n", "TRL calls it beta"),
        (GOOD + "learning_rate: fast\n", "learning_rate: 'fast' is not a finite number"),
        (GOOD + "num_generations: 3\n", "divisible by num_generations"),
        (GOOD + "max_prompt_length: 64\n", "cut its images too"),
        (GOOD + "temperature: -1\n", "temperature: -1 is out of range; it can be above 0"),
        (GOOD + "learning_rate: 0\n", "learning_rate: 0 is out of range; it can be above 0"),
        (GOOD + "max_steps: 0\n", "max_steps: 0 trains nothing; name how many"),
        (GOOD + "report_to: neptune\n", "report_to: neptune needs the package neptune"),
        (GOOD + "top_p: 1.5\n", "top_p: 1.5 is out of range; it can be above 0 and 1 at most"),
        ("model: m\noutput_dir: out\nreward: {}\n", "set one of"),
        (GOOD + "finetuning: qlora\n", "finetuning: one of full, lora"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UniDPOError, match=words):
        trl_arguments(load(tmp_path, text))


def test_vllm_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uni_dpo.grpo.config.find_spec", lambda name: None)
    with pytest.raises(UniDPOError, match="use_vllm: needs the package vllm"):
        load(tmp_path, GOOD + "use_vllm: true\n")


def test_the_command_line_stands_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "grpo.yaml").write_text(GOOD + "max_steps: 9\n")
    settings = GRPOSettings.load(tmp_path / "grpo.yaml", ["max_steps=2", "beta=4e-2", "lora_rank=8"])
    assert (settings.training["max_steps"], settings.lora_rank) == (2, 8)
    assert trl_arguments(settings).beta == 0.04


def test_what_a_resumed_run_may_change(tmp_path: Path) -> None:
    digest = load(tmp_path, GOOD).digest()
    assert load(tmp_path, GOOD + "max_steps: 9\nlogging_steps: 1\n").digest() == digest
    assert load(tmp_path, GOOD + "beta: 0.9\n").digest() != digest
