"""Linear attention within a shared sequence: the prompt once, and every answer from the state that the prompt leaves.

A gated delta net (Qwen3.5) reads a sequence in order, through a short causal convolution and then a state that every
token changes. No mask keeps one answer out of the next one's state. All else in such a layer is done token by token,
so only these two are given the prompts as rows of their own, then the answers as rows, each with the last inputs and
the final state of its prompt. Gradients of all answers flow back through that state.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from uni_dpo.shared_prefix.families import (
    LINEAR,
    decoder_layers,
    layer_kinds,
    linear_attentions,
    linear_kernels,
    replaced,
    text_config,
)
from uni_dpo.shared_prefix.layout import ANSWER, PREFIX

REGROUPING = "regrouping"
"""The input of a model that tells its linear layers what is prompt and what is answer."""

OPENED = "_uni_dpo_opened"
Args: TypeAlias = tuple[Any, ...]
Kwargs: TypeAlias = dict[str, Any]


@dataclass(frozen=True)
class Regrouping:
    """The positions of shared sequences (n, T) as rows of prompts and rows of answers.

    Attributes:
        prompts: (n, P) true on the prompts' positions, which are the first of each sequence.
        owners: (A,) the sequence that each answer is of.
        answers: (A, tail + L) where the last inputs of its prompt, then its own tokens are among n·T flattened
            positions; n·T where there is none.
        tail: how many inputs the convolution looks back.
        places: (n, T) where each position is among the flattened rows of prompts, of answers without their tails, and
            one that is nothing.
    """

    prompts: Tensor
    owners: Tensor
    answers: Tensor
    tail: int
    places: Tensor

    @classmethod
    def of(cls, segments: Tensor, tail: int) -> "Regrouping":
        """Read it from `segments` (n, T), see `attention.visibility`."""
        rows, length = segments.shape
        lengths = (segments == PREFIX).sum(1)
        longest = max(1, int(lengths.max()))
        row, column = (segments >= ANSWER).nonzero(as_tuple=True)
        numbers, counts = torch.unique_consecutive(segments[row, column], return_counts=True)
        answer = torch.repeat_interleave(torch.arange(len(numbers), device=row.device), counts)
        first = counts.cumsum(0) - counts
        offset = torch.arange(len(row), device=row.device) - first[answer]
        owners, width = row[first], int(counts.max())
        answers = torch.full((len(numbers), tail + width), rows * length, device=row.device)
        back = lengths[owners, None] - torch.arange(tail, 0, -1, device=row.device)
        answers[:, :tail] = torch.where(back >= 0, owners[:, None] * length + back, rows * length)
        answers[answer, tail + offset] = row * length + column
        places = torch.full_like(segments, rows * longest + len(numbers) * width, dtype=torch.long)
        places[:, :longest] = torch.arange(rows * longest, device=row.device).view(rows, longest)
        places[row, column] = rows * longest + answer * width + offset
        return cls(segments[:, :longest] == PREFIX, owners, answers, tail, places)

    def split(self, values: Tensor, tail: bool = False) -> tuple[Tensor, Tensor]:
        """Give values of positions, (n, T, …), as rows of prompts and of answers; zero where there is no position.

        With `tail` the rows of answers begin with the tails of their prompts.
        """
        prompts = values[:, : self.prompts.shape[1]]
        prompts = prompts * _over(self.prompts, prompts)
        return prompts, _taken(values, self.answers if tail else self.answers[:, self.tail :])

    def merged(self, prompts: Tensor, answers: Tensor) -> Tensor:
        """Undo `split`, without tails."""
        flat = torch.cat([prompts.flatten(0, 1), answers.flatten(0, 1)])
        return _taken(flat[None], self.places)


def _over(mask: Tensor, values: Tensor) -> Tensor:
    """A mask (n, T) as it multiplies values (n, T, …)."""
    return mask.to(values).view(*mask.shape, *[1] * (values.ndim - 2))


def _taken(values: Tensor, places: Tensor) -> Tensor:
    """Values (n, T, …) at flattened places; zero at place n·T."""
    flat = nn.functional.pad(values.flatten(0, 1), (*[0, 0] * (values.ndim - 2), 0, 1))
    return flat.index_select(0, places.flatten()).unflatten(0, places.shape)


def regroup(model: nn.Module, segments: Tensor) -> dict[str, Regrouping]:
    """Return what a model takes beside its masks for `segments` (n, T): nothing where it has no linear layers."""
    if LINEAR not in layer_kinds(model):
        return {}
    for layer in decoder_layers(model):
        if _hands_on not in layer._forward_pre_hooks.values():
            layer.register_forward_pre_hook(_hands_on, with_kwargs=True)
    for attention in linear_attentions(model):
        if _opens not in attention._forward_pre_hooks.values():
            attention.register_forward_pre_hook(_opens, with_kwargs=True)
            attention.register_forward_hook(_closes, always_call=True)
    return {REGROUPING: Regrouping.of(segments, text_config(model).linear_conv_kernel_dim - 1)}


def _hands_on(layer: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """Give the regrouping to a linear layer in place of its mask, which a layer that runs again is given again."""
    kwargs = dict(kwargs)
    regrouping = kwargs.pop(REGROUPING, None)
    if regrouping is not None and hasattr(layer, "linear_attn"):
        kwargs["attention_mask"] = regrouping
    return args, kwargs


def _opens(attention: nn.Module, args: Args, kwargs: Kwargs) -> tuple[Args, Kwargs]:
    """Let linear attention regroup what is shared, until it is through."""
    regrouping = kwargs.get("attention_mask")
    if not isinstance(regrouping, Regrouping):
        return args, kwargs
    opened = ExitStack()
    opened.enter_context(regrouped(attention, regrouping))
    setattr(attention, OPENED, opened)
    return args, {**kwargs, "attention_mask": None}


def _closes(attention: nn.Module, *_: Any) -> None:
    if opened := vars(attention).pop(OPENED, None):
        opened.close()


@contextmanager
def regrouped(attention: nn.Module, regrouping: Regrouping) -> Iterator[None]:
    """Let the convolution and the delta rule of a layer run over rows of prompts, then rows of answers."""
    found = linear_kernels(attention)
    if found is None:
        raise RuntimeError(f"{type(attention).__name__} has no kernels that are known")
    (convolver, convolution), (ruler, rule) = found
    with (
        replaced(convolver, convolution, partial(_convolution, getattr(convolver, convolution), regrouping)),
        replaced(ruler, rule, partial(_delta_rule, getattr(ruler, rule), regrouping)),
    ):
        yield


def _convolution(kernel: Callable[..., Tensor], regrouping: Regrouping, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A causal convolution of (n, C, T), whose kernel may give more than T."""
    prompts, answers = (rows.transpose(1, 2) for rows in regrouping.split(x.transpose(1, 2), tail=True))
    seen = kernel(prompts, *args, **kwargs)[:, :, : prompts.shape[2]]
    said = kernel(answers, *args, **kwargs)[:, :, regrouping.tail : answers.shape[2]]
    return regrouping.merged(seen.transpose(1, 2), said.transpose(1, 2)).transpose(1, 2)


def _delta_rule(
    kernel: Callable[..., tuple[Tensor, Tensor]],
    regrouping: Regrouping,
    *states: Tensor,
    g: Tensor,
    beta: Tensor,
    **settings: Any,
) -> tuple[Tensor, None]:
    """The rule over (n, T, heads, d) queries, keys and values; where `g` and `beta` are 0 the state stays."""
    prompts, answers = zip(*(regrouping.split(values) for values in (*states, g, beta)), strict=True)

    def run(rows: tuple[Tensor, ...], start: Tensor | None, keep: bool) -> tuple[Tensor, Tensor]:
        asked = {**settings, "g": rows[-2], "beta": rows[-1], "initial_state": start, "output_final_state": keep}
        return kernel(*rows[:-2], **asked)

    seen, state = run(prompts, None, True)
    said, _ = run(answers, state.index_select(0, regrouping.owners), False)
    return regrouping.merged(seen, said), None
