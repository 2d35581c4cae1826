"""The loop: sample, rate, and learn in several passes; a stopped run resumes from its last saved state."""

import json
import random
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from uni_dpo.data.questions import Question, read_questions, refuse_videos
from uni_dpo.errors import UniDPOError
from uni_dpo.online.policy import Reward, check_model, check_reward, make_reward, plain_sampling
from uni_dpo.ppo.config import PPOConfig
from uni_dpo.ppo.losses import advantages_and_returns, policy_loss, token_rewards, value_loss, whitened
from uni_dpo.ppo.policy import (
    Inputs,
    Rollout,
    answer_logps,
    collate,
    encode,
    ends_of,
    load_policy,
    sampling_config,
    stack,
    up_to_the_end,
)
from uni_dpo.storage.identity import derive_seed
from uni_dpo.storage.writing import check_writable, replacing, write_text
from uni_dpo.trainer_mixins import process_group

Metrics = dict[str, float]
STATE, LOG = "ppo_state.pt", "ppo_log.jsonl"


@process_group()
def train_ppo(config: PPOConfig) -> list[Metrics]:
    """Train the policy of `config`; the checkpoint, and one line of numbers per step, stand in its output folder.

    Returns:
        The numbers of every step.

    Raises:
        UniDPOError: a question, model or reward that cannot be used, or an output folder of another run.
    """
    output = Path(config.output_dir)
    check_writable(output / STATE)
    questions = read_questions(config.questions, output / "images")
    refuse_videos(questions, "ppo")
    check_reward(config.reward, questions)
    check_model(config)
    reward = make_reward(config.reward, batch_size=config.micro_batch_size, trust_remote_code=config.trust_remote_code)
    return PPOTrainer(config, questions, reward).train()


class PPOTrainer:
    """PPO of one policy on one list of questions, which are asked over and over in drawn orders."""

    def __init__(self, config: PPOConfig, questions: Sequence[Question], reward: Reward) -> None:
        self.config, self.questions, self.reward = config, list(questions), reward
        self.output = Path(config.output_dir)
        self.accelerator = Accelerator(mixed_precision="bf16" if config.bf16 else "no")
        policy, self.reference, self.processor = load_policy(config)
        self.trained = {name: weight for name, weight in policy.named_parameters() if weight.requires_grad}
        optimizer = torch.optim.AdamW(self.trained.values(), lr=config.learning_rate, weight_decay=0.0)
        self.model = policy.model
        self.policy, self.optimizer = self.accelerator.prepare(policy, optimizer)
        self.reference.to(self.accelerator.device)
        self.sampling = sampling_config(
            self.model, self.processor.tokenizer, max_tokens=config.max_tokens, temperature=config.temperature
        )
        self.log: list[Metrics] = []

    def train(self) -> list[Metrics]:
        """Run the steps that are left; return the numbers of all."""
        self._resume()
        shown = self.accelerator.is_main_process
        steps = range(len(self.log), self.config.steps)
        with tqdm(desc="PPO", unit=" steps", total=self.config.steps, initial=steps.start, disable=not shown) as bar:
            for step in steps:
                self.log.append(self.step(step))
                bar.set_postfix(reward=f"{self.log[-1]['reward']:.3f}", kl=f"{self.log[-1]['kl']:.3f}")
                bar.update()
                if (step + 1) % self.config.save_steps == 0 or step + 1 == self.config.steps:
                    self._save_state()
        if shown:
            self.model.save_pretrained(self.output)
            self.processor.save_pretrained(self.output)
        self.accelerator.wait_for_everyone()
        return self.log

    def step(self, step: int) -> Metrics:
        """Sample one rollout and learn from it; return what happened, averaged over processes."""
        torch.manual_seed(derive_seed(self.config.seed, step, self.accelerator.process_index) % 2**63)
        rollout = self._roll_out(self._questions_of(step))
        log_ratio = (rollout.logps - rollout.reference_logps) * rollout.mask
        metrics = {
            "reward": float(rollout.scores.mean()),
            "kl": float(log_ratio.sum(1).mean()),
            "answer_tokens": float(rollout.mask.sum(1).mean()),
            **self._learn(rollout, step),
        }
        table = torch.tensor([list(metrics.values())], device=self.accelerator.device, dtype=torch.float64)
        means = self.accelerator.gather(table).mean(0).tolist()
        return {"step": step, **dict(zip(metrics, means, strict=True))}

    def _questions_of(self, step: int) -> list[Question]:
        """This process's share of the step's questions."""
        size, count = self.config.rollout_batch_size, len(self.questions)
        first = (step * self.accelerator.num_processes + self.accelerator.process_index) * size
        places = [divmod(place, count) for place in range(first, first + size)]
        return [self.questions[_order(count, epoch, self.config.seed)[place]] for epoch, place in places]

    @torch.no_grad()
    def _roll_out(self, questions: list[Question]) -> Rollout:
        self.policy.eval()
        prompts = [encode(question, self.processor) for question in questions]
        size = self.config.micro_batch_size
        answers: list[list[int]] = []
        for start in range(0, len(prompts), size):
            answers += self._sample(prompts[start : start + size])
        texts = [text.strip() for text in self.processor.batch_decode(answers, skip_special_tokens=True)]
        scores = torch.tensor(self.reward(questions, texts), device=self.accelerator.device)
        logps, values, reference_logps, mask = [], [], [], []
        for start in range(0, len(prompts), size):
            inputs, labels = self._batch(prompts[start : start + size], answers[start : start + size])
            batch_logps, batch_values = self.policy(inputs, labels)
            with self.reference.of(self.model) as reference, self.accelerator.autocast():
                reference_logps.append(answer_logps(reference, inputs, labels, self.config.temperature)[0])
            mask.append((labels[:, 1:] >= 0).float())
            logps.append(batch_logps)
            values.append(batch_values * mask[-1])
        old, before, reference_table, tokens = map(stack, (logps, values, reference_logps, mask))
        rewards = token_rewards(scores, old, reference_table, tokens, self.config.kl_coef)
        advantages, returns = advantages_and_returns(
            rewards, before, tokens, gamma=self.config.gamma, lam=self.config.lam
        )
        white = whitened(advantages, *self._moments(advantages, tokens), tokens)
        return Rollout(prompts, answers, scores, old, reference_table, tokens, before, white, returns)

    def _sample(self, prompts: list[Inputs]) -> list[list[int]]:
        inputs, _ = self._batch(prompts, [[]] * len(prompts))
        with self.accelerator.autocast(), plain_sampling(self.model):
            output = self.model.generate(**inputs, generation_config=self.sampling)
        new = output[:, inputs["input_ids"].shape[1] :].tolist()
        return [up_to_the_end(tokens, ends_of(self.sampling)) for tokens in new]

    def _learn(self, rollout: Rollout, step: int) -> Metrics:
        """Several passes over a rollout, its own log-probabilities and values being the old ones in all of them."""
        self.policy.train(self.config.gradient_checkpointing)
        draw = random.Random(derive_seed(self.config.seed, "learn", step, self.accelerator.process_index))
        count, size = len(rollout.answers), self.config.mini_batch_size
        metrics: Metrics = {}
        for epoch in range(self.config.ppo_epochs):
            order = draw.sample(range(count), count)
            parts = [self._update(rollout, order[start : start + size]) for start in range(0, count, size)]
            means = {name: sum(part[name] for part in parts) / len(parts) for name in parts[0]}
            if epoch == 0:
                metrics["ratio_shift_first_epoch"] = means["ratio_shift"]
            metrics |= means
        return metrics

    def _update(self, rollout: Rollout, rows: list[int]) -> Metrics:
        """One optimizer step; the loss is the mean over the tokens of all processes."""
        tokens = rollout.mask[rows].sum()
        everywhere = self.accelerator.reduce(tokens, "sum")
        share = self.accelerator.num_processes / everywhere  # gradients are averaged over processes, not summed
        sums = torch.zeros(4, device=self.accelerator.device)
        starts = range(0, len(rows), self.config.micro_batch_size)
        for start in starts:
            part = rows[start : start + self.config.micro_batch_size]
            if start == starts[-1]:
                sums += self._backward(rollout, part, share)
            else:
                with self.accelerator.no_sync(self.policy):
                    sums += self._backward(rollout, part, share)
        self.accelerator.clip_grad_norm_(self.policy.parameters(), self.config.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        names = ("policy_loss", "value_loss", "ratio_shift", "clipped")
        return dict(zip(names, (sums / tokens).tolist(), strict=True))

    def _backward(self, rollout: Rollout, rows: list[int], share: Tensor) -> Tensor:
        config = self.config
        inputs, labels = self._batch([rollout.prompts[row] for row in rows], [rollout.answers[row] for row in rows])
        logps, values = self.policy(inputs, labels)
        width = labels.shape[1] - 1
        mask, old, advantages, before, returns = (
            table[rows, :width]
            for table in (rollout.mask, rollout.logps, rollout.advantages, rollout.values, rollout.returns)
        )
        for_policy = policy_loss(logps, old, advantages, config.clip) * mask
        for_value = value_loss(values, before, returns, config.value_clip) * mask
        self.accelerator.backward((for_policy + config.value_coef * for_value).sum() * share)
        shift = ((logps - old).exp() - 1).abs().detach() * mask
        parts = (for_policy.detach(), for_value.detach(), shift, (shift > config.clip).float())
        return torch.stack([part.sum() for part in parts])

    def _batch(self, prompts: list[Inputs], answers: list[list[int]]) -> tuple[Inputs, Tensor]:
        inputs, labels = collate(prompts, answers, self.processor.tokenizer.pad_token_id)
        device = self.accelerator.device
        return {name: value.to(device) for name, value in inputs.items()}, labels.to(device)

    def _moments(self, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance over the tokens of all processes."""
        local = torch.stack([mask.sum(), (values * mask).sum(), (values**2 * mask).sum()])
        count, total, squares = self.accelerator.reduce(local, "sum")
        mean = total / count
        return mean, (squares / count - mean**2).clamp(min=0.0)

    def _save_state(self) -> None:
        if not self.accelerator.is_main_process:
            return
        state = {
            "run": self.config.digest(),
            "log": self.log,
            "weights": {name: weight.detach().cpu() for name, weight in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
        }
        with replacing(self.output / STATE) as temporary:
            torch.save(state, temporary)
        write_text(self.output / LOG, "".join(json.dumps(line) + "\n" for line in self.log))

    def _resume(self) -> None:
        path = self.output / STATE
        if not path.is_file():
            return
        try:
            state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        except (RuntimeError, EOFError, UnpicklingError) as error:
            said = str(error).splitlines()[0]
            raise UniDPOError(
                f"{path}: is damaged ({said}); delete it to start anew, or name another output_dir"
            ) from None
        if state["run"] != self.config.digest():
            raise UniDPOError(f"{self.output} holds a run of other settings: name another output_dir, or delete it")
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(state["weights"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.log = state["log"]
        self.accelerator.print(f"resuming from {path}, after {len(self.log):,} steps")


@lru_cache(maxsize=2)
def _order(count: int, epoch: int, seed: int) -> list[int]:
    """The drawn order of an epoch's questions."""
    return random.Random(derive_seed(seed, "order", epoch)).sample(range(count), count)
