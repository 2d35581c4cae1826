"""Whole steps of PPO on the tiny model: what the epochs see, what is learnt, and going on after a stop."""

import dataclasses
import json
from pathlib import Path
from statistics import fmean

import pytest
import torch

from uni_dpo.demo.digits import closeness
from uni_dpo.engine import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.online.policy import graded
from uni_dpo.ppo.losses import advantages_and_returns, token_rewards
from uni_dpo.ppo.policy import Rollout, answer_logps
from uni_dpo.ppo.trainer import PPOTrainer
from uni_dpo.shared_prefix.families import unwrapped


@pytest.fixture
def trainer(config, digit_questions: dict[str, list[Question]]):
    """`trainer(**settings)` is a trainer on the digits."""
    return lambda **settings: PPOTrainer(config(**settings), digit_questions["preference"][:40], graded(closeness))


def lengths(questions: list[Question], answers: list[str]) -> list[float]:
    """A reward that differs between answers of an untrained model."""
    return [float(len(answer)) / 10 for answer in answers]


@pytest.mark.parametrize("finetuning", ["full", "lora"])
def test_the_ratio_is_one_in_the_first_epoch_and_not_in_the_second(trainer, finetuning: str) -> None:
    """One minibatch per epoch: before the first update the policy is the one that sampled."""
    run = trainer(finetuning=finetuning, lora_rank=4)
    run.reward = lengths
    metrics = run.step(0)
    assert metrics["ratio_shift_first_epoch"] < 1e-5
    assert metrics["ratio_shift"] > 1e-3
    assert metrics["kl"] == pytest.approx(0, abs=1e-5)  # the policy still was the reference when it sampled


def test_the_reference_stays_and_the_policy_moves(trainer) -> None:
    for finetuning in ("full", "lora"):
        run = trainer(finetuning=finetuning, lora_rank=4)
        run.reward = lengths
        before = run._roll_out(run._questions_of(0))
        run._learn(before, 0)
        torch.manual_seed(0)
        after = run._roll_out(run._questions_of(0))
        assert not torch.allclose(after.logps, after.reference_logps, atol=1e-4)
        inputs, labels = run._batch(before.prompts[:4], before.answers[:4])
        with torch.no_grad(), run.reference.of(run.model) as reference:
            again = answer_logps(reference, inputs, labels, 1.0)[0]
        torch.testing.assert_close(again, before.reference_logps[:4, : again.shape[1]], atol=1e-5, rtol=1e-4)


def test_a_rollout_holds_what_the_losses_need(trainer) -> None:
    """Advantages and returns are those of the token rewards; over all tokens they have mean 0 and variance 1."""
    run = trainer(kl_coef=0.3, gamma=0.9, lam=0.8)
    run.reward = lengths
    torch.nn.init.normal_(run.policy.value_head.weight, std=0.1)
    rollout = run._roll_out(run._questions_of(0))
    counts = [len(answer) for answer in rollout.answers]
    assert rollout.mask.sum(1).tolist() == counts
    assert max(counts) == rollout.mask.shape[1]
    rewards = token_rewards(rollout.scores, rollout.logps, rollout.reference_logps, rollout.mask, 0.3)
    advantages, returns = advantages_and_returns(rewards, rollout.values, rollout.mask, gamma=0.9, lam=0.8)
    torch.testing.assert_close(rollout.returns, returns)
    tokens = rollout.mask.bool()
    assert float(rollout.advantages[tokens].mean()) == pytest.approx(0, abs=1e-5)
    assert float(rollout.advantages[tokens].var(correction=0)) == pytest.approx(1, abs=1e-4)
    order = advantages[tokens].argsort()
    assert torch.equal(rollout.advantages[tokens].argsort(), order)


def test_micro_batches_change_nothing(trainer) -> None:
    """The same gradient whether 2 or 8 answers share a forward pass, up to float32."""
    run = trainer(micro_batch_size=8)
    run.reward = lengths
    rollout = run._roll_out(run._questions_of(0))
    at_once = gradients(run, rollout)
    run.config = dataclasses.replace(run.config, micro_batch_size=2)
    torch.testing.assert_close(gradients(run, rollout), at_once, atol=1e-5, rtol=1e-3)


def gradients(run: PPOTrainer, rollout: Rollout) -> torch.Tensor:
    """The gradient of one update over the whole rollout, its step not taken."""
    found = []
    run.optimizer.step = lambda: found.extend(weight.grad.clone().flatten() for weight in run.trained.values())
    run._update(rollout, list(range(len(rollout.answers))))
    return torch.cat(found)


def test_a_stopped_run_goes_on_to_the_same_numbers(trainer, tmp_path: Path, capsys) -> None:
    whole = trainer(steps=3, output_dir=str(tmp_path / "whole")).train()
    stopped = {"output_dir": str(tmp_path / "stopped")}
    trainer(steps=2, **stopped).train()
    capsys.readouterr()
    resumed = trainer(steps=3, **stopped).train()
    assert f"resuming from {tmp_path / 'stopped' / 'ppo_state.pt'}, after 2 steps\n" in capsys.readouterr().out
    assert [line["step"] for line in resumed] == [0, 1, 2]
    for left, right in zip(resumed, whole, strict=True):
        assert left == pytest.approx(right, rel=1e-4, abs=1e-6)
    written = [json.loads(line) for line in (tmp_path / "stopped" / "ppo_log.jsonl").read_text().splitlines()]
    assert written == resumed
    with pytest.raises(UniDPOError, match="other settings"):
        trainer(steps=3, kl_coef=0.9, **stopped).train()
    (tmp_path / "stopped" / "ppo_state.pt").write_bytes(b"cut off")
    with pytest.raises(UniDPOError, match=r"ppo_state\.pt: is damaged .*; delete it to start anew"):
        trainer(steps=3, **stopped).train()


def test_the_checkpoint_loads_like_any_other(trainer, tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    run = trainer(steps=1)
    run.reward = lengths
    run.train()
    model = AutoModelForImageTextToText.from_pretrained(run.output)
    AutoProcessor.from_pretrained(run.output)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight, run.model.get_parameter(name))


@pytest.mark.slow
def test_ppo_raises_the_reward_and_the_kl_stays_bounded(
    warm_policy: Path, config, digit_questions: dict[str, list[Question]]
) -> None:
    settings = config(
        model=str(warm_policy),
        steps=16,
        rollout_batch_size=64,
        mini_batch_size=32,
        micro_batch_size=64,
        learning_rate=3e-4,
        max_tokens=8,
    )
    log = PPOTrainer(settings, digit_questions["preference"], graded(closeness)).train()
    before, after = (fmean(line["reward"] for line in part) for part in (log[:4], log[-4:]))
    assert after > before + 0.1
    assert max(abs(line["kl"]) for line in log) < 2


@pytest.mark.parametrize("finetuning", ["full", "lora"])
def test_a_checkpoints_habits_do_not_change_what_is_sampled(trainer, finetuning: str) -> None:
    """`min_p` 1 leaves the likeliest token only: eight answers to one question would be one."""
    run = trainer(finetuning=finetuning, lora_rank=4)
    unwrapped(run.model).generation_config.min_p = 1.0
    rollout = run._roll_out(run._questions_of(0)[:1] * 8)
    assert len(set(map(tuple, rollout.answers))) > 1
