"""What a model in this process computes of the next token: looked at, and drawn from."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Sampling


def sound_logits(logits: torch.Tensor, model: str) -> torch.Tensor:
    """Logits as they are.

    Raises:
        UniDPOError: there is a NaN, of which the likeliest token and every probability would be made up.
    """
    if torch.isnan(logits).any():
        overflow = "its weights are damaged, or overflow their dtype"
        raise UniDPOError(f"{model}: computes NaN: {overflow}; copy them again, or set dtype: bfloat16 or float32")
    return logits


class SoundLogits(LogitsProcessor):
    """See `sound_logits`."""

    def __init__(self, model: str) -> None:
        self.model = model

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return sound_logits(scores, self.model)


class OwnStreams(LogitsProcessor):
    """Draws each row's next token from the row's own stream of uniform numbers and masks all others."""

    def __init__(self, seeds: Sequence[int], prompt_length: int, sampling: Sampling) -> None:
        self.prompt_length = prompt_length
        self.sampling = sampling
        self.uniforms = torch.from_numpy(
            np.concatenate([np.random.default_rng(s).random((sampling.n, sampling.max_tokens)) for s in seeds])
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ordered, tokens = (scores.double() / self.sampling.temperature).sort(dim=-1, descending=True, stable=True)
        if self.sampling.top_k:
            ordered[:, self.sampling.top_k :] = -math.inf
        mass = ordered.softmax(-1).cumsum(-1)
        # A token stays while the mass before it is below top_p: the likeliest one always does.
        limit = mass.gather(-1, (mass < self.sampling.top_p).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1))
        step = input_ids.shape[1] - self.prompt_length
        target = self.uniforms[:, step, None].to(mass.device) * limit
        drawn = (mass <= target).sum(-1, keepdim=True).clamp(max=mass.shape[-1] - 1)
        return torch.full_like(scores, -math.inf).scatter(-1, tokens.gather(-1, drawn), 0.0)
