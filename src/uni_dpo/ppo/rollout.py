"""One step's experience: answers sampled by the policy, and everything that is known of them then."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig

from uni_dpo.online.policy import media_tokens
from uni_dpo.ppo.policy import Inputs


@dataclass(frozen=True)
class Rollout:
    """Answers and what they earned; tables are (B, T), a column per answer token, 0 on padding.

    Attributes:
        prompts: one batch of one per answer.
        answers: token ids, the end of turn included where the policy came to it.
        scores: (B,) the reward of each answer.
        logps: of the policy that sampled the answers: the old ones of every epoch.
        reference_logps: of the reference.
        mask: 1 on answer tokens.
        advantages: whitened over all tokens of all processes.
        returns: what the values should have been.
        values: what they were.
    """

    prompts: list[Inputs]
    answers: list[list[int]]
    scores: Tensor
    logps: Tensor
    reference_logps: Tensor
    mask: Tensor
    values: Tensor
    advantages: Tensor
    returns: Tensor


def sampling_config(model: Any, tokenizer: Any, *, max_tokens: int, temperature: float) -> GenerationConfig:
    """Plain sampling at a temperature; see also `plain_sampling`."""
    own = model.generation_config
    return GenerationConfig(
        do_sample=True,
        temperature=temperature,
        top_k=0,
        top_p=1.0,
        suppress_tokens=media_tokens(model) or None,
        max_new_tokens=max_tokens,
        eos_token_id=own.eos_token_id or tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=own.bos_token_id,
    )


def up_to_the_end(tokens: Sequence[int], ends: set[int]) -> list[int]:
    """The tokens of one answer with its first end of turn, without what follows it."""
    end = next((place for place, token in enumerate(tokens) if token in ends), len(tokens) - 1)
    return list(tokens[: end + 1])


def ends_of(config: GenerationConfig) -> set[int]:
    """The tokens that end an answer."""
    ends = config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends])


def stack(tables: Sequence[Tensor]) -> Tensor:
    """Tables of different widths under one another, 0 where a row has no column."""
    width = max(table.shape[1] for table in tables)
    return torch.cat([torch.nn.functional.pad(table, (0, width - table.shape[1])) for table in tables])
