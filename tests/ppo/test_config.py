"""A config is checked before anything is loaded."""

from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.ppo.config import PPOConfig

GOOD = "model: m\noutput_dir: out\nreward: {function: exact}\n"


def load(tmp_path: Path, text: str) -> PPOConfig:
    (tmp_path / "ppo.yaml").write_text(text)
    return PPOConfig.load(tmp_path / "ppo.yaml")


def test_a_good_config(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD + "learning_rate: 1e-6\nquestions: {path: q.jsonl}\n")
    assert config.learning_rate == 1e-6
    assert config.questions.path == "q.jsonl"
    assert config.reward.function == "exact"


def test_the_command_line_stands_before_the_file(tmp_path: Path) -> None:
    (tmp_path / "ppo.yaml").write_text(GOOD + "steps: 7\n")
    config = PPOConfig.load(tmp_path / "ppo.yaml", ["steps=2", "questions.path=q.jsonl", "learning_rate=1e-6"])
    assert (config.steps, config.questions.path, config.learning_rate) == (2, "q.jsonl", 1e-6)
    with pytest.raises(UniDPOError, match="step: unknown setting; did you mean 'steps'"):
        PPOConfig.load(tmp_path / "ppo.yaml", ["step=2"])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (GOOD + "reward_model: x\n", "reward_model: unknown setting"),
        ("model: m\noutput_dir: out\nreward: {}\n", "set one of"),
        ("model: m\noutput_dir: out\nreward: {function: exact, model: r}\n", "set one of"),
        (GOOD + "steps: 0\n", "ppo.yaml:4: steps: 0 is out of range; it can be 1 or more"),
        (GOOD + "temperature: 0\n", "temperature: 0 is out of range; it can be above 0"),
        (GOOD + "lam: 1.5\n", "lam: 1.5 is out of range; it can be 0 or more and 1 at most"),
        (GOOD + "rollout_batch_size: 10\nmini_batch_size: 4\n", "no multiple"),
        ("- a\n", "expected `key: value` lines"),
    ],
)
def test_what_cannot_work_is_refused(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UniDPOError, match=words):
        load(tmp_path, text)


def test_what_a_resumed_run_may_change(tmp_path: Path) -> None:
    """More steps go on from the same state; another β does not."""
    digest = load(tmp_path, GOOD).digest()
    assert load(tmp_path, GOOD + "steps: 7\nmicro_batch_size: 1\n").digest() == digest
    assert load(tmp_path, GOOD + "kl_coef: 0.9\n").digest() != digest
