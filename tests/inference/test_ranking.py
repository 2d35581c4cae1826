"""A reward model that was really trained: it has to look at the image to be right."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from uni_dpo.demo.digits import QUESTION, Digit, answer
from uni_dpo.engine import Question
from uni_dpo.inference.score import score_file
from uni_dpo.inference.settings import ScoreSettings
from uni_dpo.online import RewardOptions
from uni_dpo.ppo.config import PPOConfig
from uni_dpo.ppo.policy import Inputs, Policy, answer_logps, collate, encode, load_policy

END_OF_TURN = "<|im_end|>\n"


def train(policy: Policy, steps: int, rate: float, loss: Callable[[], torch.Tensor]) -> None:
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps, pct_start=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        loss().backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()


def ratings(policy: Policy, inputs: Inputs, labels: torch.Tensor) -> torch.Tensor:
    """The value at each conversation's last token."""
    hidden = policy.model.base_model(**inputs, use_cache=False).last_hidden_state
    answers = (labels >= 0).sum(1)
    last = hidden.shape[1] - labels.shape[1] + answers
    return policy.value_head(hidden[torch.arange(len(hidden)), last]).squeeze(-1)


@pytest.mark.slow
@pytest.mark.nightly
def test_a_trained_reward_model_ranks_held_out_answers(
    tiny_qwen2_vl: Path, digits: dict[str, list[Digit]], tmp_path: Path
) -> None:
    """Fine-tuned on right answers, then on pairs of a right and a wrong one; rated from the checkpoint on disk."""
    from safetensors.torch import save_file

    reward = RewardOptions(function="exact")
    policy, _, processor = load_policy(
        PPOConfig(str(tiny_qwen2_vl), "", reward, finetuning="full", freeze_vision_tower=False)
    )
    tokens = [processor.tokenizer(answer(label) + END_OF_TURN)["input_ids"] for label in range(10)]
    pad, draw = processor.tokenizer.pad_token_id, random.Random(0)
    seen = digits["train"] + digits["preference"]
    prompts = {digit.image: encode(Question("", QUESTION, (str(digit.image),)), processor) for digit in seen}

    def fine_tuning_loss() -> torch.Tensor:
        batch = draw.sample(digits["train"], 32)
        inputs, labels = collate([prompts[d.image] for d in batch], [tokens[d.label] for d in batch], pad)
        return -answer_logps(policy.model, inputs, labels, 1.0)[0].mean()

    def ranking_loss() -> torch.Tensor:
        batch = draw.sample(digits["preference"], 32)
        wrong = [draw.choice([label for label in range(10) if label != d.label]) for d in batch]
        labels = [d.label for d in batch] + wrong
        inputs = collate([prompts[d.image] for d in batch] * 2, [tokens[label] for label in labels], pad)
        better, worse = ratings(policy, *inputs).chunk(2)
        return -torch.nn.functional.logsigmoid(better - worse).mean()

    train(policy, 200, 3e-3, fine_tuning_loss)
    torch.manual_seed(0)
    torch.nn.init.normal_(policy.value_head.weight, std=0.02)
    train(policy, 200, 4e-4, ranking_loss)
    policy.model.save_pretrained(tmp_path / "reward")
    processor.save_pretrained(tmp_path / "reward")
    head = {f"v_head.summary.{name}": weight.detach() for name, weight in policy.value_head.named_parameters()}
    save_file(head, tmp_path / "reward" / "value_head.safetensors")

    pairs = [
        {
            "instruction": f"<image>{QUESTION}",
            "chosen": digit.answer,
            "rejected": answer(draw.choice([label for label in range(10) if label != digit.label])),
            "images": [str(digit.image)],
        }
        for digit in digits["held_out"]
    ]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    files = {"source": tmp_path / "pairs.json", "output": tmp_path / "scored.json"}
    report = score_file(ScoreSettings(tmp_path / "reward", batch_size=64, **files))
    assert report.rows == 347
    assert report.agreement is not None
    assert report.agreement > 0.7
