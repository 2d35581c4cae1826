"""One forward pass of any model over a pair batch, giving log-probabilities instead of logits.

The model's own forward runs, wrappers (DDP, DeepSpeed, PEFT) included. Only its head is stood in for, so
that it is handed the hidden states and gives back the log-probabilities of the response tokens.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from uni_dpo.logprobs import ResponseTokens, response_logps
from uni_dpo.shared_prefix.attention import seen_by
from uni_dpo.shared_prefix.families import (
    logit_cap,
    output_head,
    replaced,
    text_config,
    unwrapped,
    vision_parameters,
)
from uni_dpo.shared_prefix.layout import sequence_means


@dataclass(frozen=True)
class PairScores:
    """What a model makes of a pair batch: one number per row each, the n chosen answers first, then the n rejected.

    Args:
        logps: summed log-probabilities of the response tokens, in nats.
        lengths: numbers of response tokens.
        mean_logits: mean over the vocabulary and the positions of a sequence, without gradient; None if not asked for.
    """

    logps: Tensor
    lengths: Tensor
    mean_logits: Tensor | None


def pair_scores(
    model: nn.Module,
    inputs: dict[str, Any],
    tokens: ResponseTokens,
    *,
    ld_alpha: float | None = None,
    mean_logits: bool = False,
) -> PairScores:
    """Run `model` over a pair batch.

    Args:
        model: a causal language model of transformers, wrapped or not.
        inputs: its inputs; with `segments` (n, T) from `share_questions` the mask is made from them.
        tokens: what to score.
        ld_alpha: see `ResponseTokens.sum`.
        mean_logits: project the mean hidden states too.
    """
    inputs = dict(inputs)
    segments = inputs.pop("segments", None)
    if segments is not None:
        inputs |= seen_by(model, segments, inputs["input_ids"])
    head = output_head(model)
    plain = type(head) is nn.Linear and "forward" not in vars(head) and logit_cap(model) is None
    means: list[Tensor] = []

    def score(hidden: Tensor, project: Callable[[Tensor], Tensor]) -> Tensor:
        if mean_logits:
            with torch.no_grad():
                means.append(project(sequence_means(hidden, segments)).float().mean(-1))
        return response_logps(hidden, head, tokens, project=None if plain else project)

    logps = in_place_of_head(model, inputs, score)
    return PairScores(tokens.sum(logps, ld_alpha), tokens.lengths(), tokens.per_row(means[0]) if mean_logits else None)


def in_place_of_head(model: nn.Module, inputs: dict[str, Any], score: Callable[..., Tensor]) -> Tensor:
    """Run `model`, wrapped or not, with `score(hidden, project)` in place of its projection onto the vocabulary.

    A cap of the logits is part of the projection, since the model would put it on what `score` gives.
    """
    with ExitStack() as changed:
        changed.enter_context(replaced(output_head(model), "forward", partial(score, project=projection(model))))
        if logit_cap(model) is not None:
            changed.enter_context(replaced(text_config(model), "final_logit_softcapping", None))
        found: Tensor = model(**inputs, use_cache=False, return_dict=True).logits
    return found


def projection(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return what makes logits of hidden states: the projection onto the vocabulary, and the cap where there is one."""
    project: Callable[[Tensor], Tensor] = output_head(model).forward
    cap = logit_cap(model)
    return project if cap is None else partial(_capped, project, cap)


def _capped(project: Callable[[Tensor], Tensor], cap: float, hidden: Tensor) -> Tensor:
    return cap * torch.tanh(project(hidden) / cap)


class ImageFeatures:
    """Image features of one batch, made by one model and used by a second whose vision tower is the same."""

    def __init__(self) -> None:
        self._pixels: Tensor | None = None
        self._features: Any = None

    @contextmanager
    def kept(self, model: nn.Module, pixels: Tensor | None) -> Iterator[None]:
        """Keep what `model` makes of `pixels` in this block."""
        owner = unwrapped(model).model
        make = owner.get_image_features
        self._pixels = pixels

        def make_and_keep(*args: Any, **kwargs: Any) -> Any:
            self._features = make(*args, **kwargs)
            return self._features

        with replaced(owner, "get_image_features", make_and_keep):
            yield

    @contextmanager
    def reused(self, model: nn.Module, pixels: Tensor | None) -> Iterator[None]:
        """Give `model` the kept features in this block, if they are of `pixels`, then forget them."""
        features, same = self._features, pixels is not None and pixels is self._pixels
        self._pixels = self._features = None
        owner = unwrapped(model).model
        with replaced(owner, "get_image_features", lambda *_, **__: features) if same else nullcontext():
            yield


def same_frozen_vision(policy: nn.Module, reference: nn.Module) -> bool:
    """Tell whether both models make the same image features, now and for as long as the policy is trained."""
    ours, theirs = vision_parameters(policy), vision_parameters(reference)
    if not ours or ours.keys() != theirs.keys() or any(parameter.requires_grad for parameter in ours.values()):
        return False
    return all(_equal(parameter, theirs[name]) for name, parameter in ours.items())


def _equal(first: nn.Parameter, second: nn.Parameter) -> bool:
    """Compare whole parameters, or this rank's shards under ZeRO-3."""
    first, second = (getattr(parameter, "ds_tensor", parameter) for parameter in (first, second))
    return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
