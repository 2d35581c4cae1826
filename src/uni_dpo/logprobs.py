"""Log-probabilities of response tokens without the logits of everything else.

A preference loss reads the log-probability of the answers' tokens and nothing more. So only the hidden
states that predict such a token are projected onto the vocabulary, a chunk at a time, and the backward
pass projects each chunk again instead of keeping its logits.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from uni_dpo.matmul import matmul_nt

IGNORE_INDEX = -100
"""The label of a token that is not scored."""

CPU_CHUNK_BYTES, CHUNK_BYTES = 2 * 2**20, 32 * 2**20
"""Bytes of logits, in their working precision, made at once: a CPU core's cache full; elsewhere few large blocks."""

KEPT_BYTES = 256 * 2**20
"""Up to this many bytes of logits are kept for the backward pass instead of being made again."""


@dataclass(frozen=True)
class ResponseTokens:
    """The scored tokens of a batch, and the place among all hidden states that predicts each.

    Args:
        predictor: (N,) index into the hidden states (batch and time flattened).
        target: (N,) token ids.
        sequence: (N,) the sequence each token is of, in [0, sequences).
        offset: (N,) distance from the first scored token of its sequence.
        sequences: how many sequences there are.
        width: one more than the largest offset.
        rows: (rows,) which sequence each row of the batch is, where several rows are the same; None where row i is
            sequence i. In a pair batch the first half of the rows are the chosen answers.
    """

    predictor: Tensor
    target: Tensor
    sequence: Tensor
    offset: Tensor
    sequences: int
    width: int
    rows: Tensor | None = None

    @classmethod
    def from_labels(cls, labels: Tensor) -> "ResponseTokens":
        """Read the tokens from `labels` (B, T), where position t predicts the label at t + 1."""
        scored = labels[:, 1:] != IGNORE_INDEX
        sequence, column = scored.nonzero(as_tuple=True)
        offset = column - scored.int().argmax(1)[sequence]
        return cls(
            predictor=sequence * labels.shape[1] + column,
            target=labels[sequence, column + 1],
            sequence=sequence,
            offset=offset,
            sequences=labels.shape[0],
            width=int(offset.max()) + 1 if len(offset) else 0,
        )

    def lengths(self) -> Tensor:
        """Return the number of scored tokens of each row, (rows,)."""
        return self.per_row(torch.bincount(self.sequence, minlength=self.sequences))

    def per_row(self, values: Tensor) -> Tensor:
        """Give each row, (rows, …), the value of its sequence, (sequences, …)."""
        return values if self.rows is None else values[self.rows]

    def table(self, values: Tensor, width: int) -> Tensor:
        """Give values of tokens, (N,), as (sequences, width), those of a sequence side by side, 0 behind them."""
        return values.new_zeros(self.sequences, width).index_put((self.sequence, self.offset), values)

    def sum(self, logps: Tensor, ld_alpha: float | None = None) -> Tensor:
        """Add up the tokens' log-probabilities per row.

        Args:
            logps: (N,) one per token.
            ld_alpha: weight of the tokens past the length of the pair's shorter answer, as in LD-DPO
                (arXiv 2409.06411); None is 1.

        Returns:
            (rows,) sums.
        """
        table = self.per_row(self.table(logps, self.width))
        if ld_alpha is not None:
            shorter = self.lengths().view(2, -1).amin(0).repeat(2)
            beyond = torch.arange(self.width, device=logps.device) >= shorter[:, None]
            table = torch.where(beyond, ld_alpha * table, table)
        return table.sum(1)


def response_logps(
    hidden: Tensor,
    head: nn.Module,
    tokens: ResponseTokens,
    *,
    project: Callable[[Tensor], Tensor] | None = None,
    chunk_bytes: int | None = None,
) -> Tensor:
    """Score the response tokens; the same numbers and gradients as `log_softmax` of all logits in float32.

    Args:
        hidden: (B, T, D) last hidden states.
        head: the projection onto the vocabulary. A plain `nn.Linear` is read directly; any other module
            (LoRA, quantised) is called, chunk by chunk.
        tokens: what to score, and where.
        project: called in place of `head`, which is then not read directly.
        chunk_bytes: bound on the logits made at once; by default `CPU_CHUNK_BYTES` or `CHUNK_BYTES` (blocks of the
            vocabulary) for a plain linear layer, `KEPT_BYTES` (blocks of tokens) for a module that is called.

    Returns:
        (N,) log-probabilities, in float32 (float64 for float64 inputs).
    """
    selected = hidden.flatten(0, -2)[tokens.predictor]
    if type(head) is nn.Linear and project is None:
        return linear_logps(selected, head.weight, tokens.target, head.bias, chunk_bytes=chunk_bytes)
    parts = _chunks(len(selected), _vocabulary(head), selected, chunk_bytes or KEPT_BYTES)
    logps = [_called_logps(project or head, selected[part], tokens.target[part]) for part in parts]
    return torch.cat(logps) if logps else selected.sum(1, dtype=_working_dtype(selected))


def linear_logps(
    hidden: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None = None, *, chunk_bytes: int | None = None
) -> Tensor:
    """Return log-probability of `target` (N,) under `hidden` (N, D) · `weight`ᵀ (V, D) + `bias` (V,).

    See `response_logps`.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        dtype = torch.get_autocast_dtype(hidden.device.type)
        hidden, weight = hidden.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    chunk_bytes = chunk_bytes or (CPU_CHUNK_BYTES if hidden.device.type == "cpu" else CHUNK_BYTES)
    with torch.autocast(hidden.device.type, enabled=False):
        kept_bytes = KEPT_BYTES if torch.is_grad_enabled() else 0
        return _LinearLogps.apply(hidden, weight, bias, target, chunk_bytes, kept_bytes)


class _LinearLogps(torch.autograd.Function):
    """`gather − logsumexp` of a linear layer, a block of the vocabulary at a time.

    A block's logits are made, used and overwritten while they are still in the processor's cache. The backward pass
    makes them again, unless those of all blocks are within `kept_bytes`: then their exponentials are kept.
    """

    @staticmethod
    def forward(ctx, hidden, weight, bias, target, chunk_bytes, kept_bytes):  # type: ignore[no-untyped-def]  # torch's signature
        blocks = _chunks(len(weight), len(hidden), hidden, chunk_bytes)
        picked = torch.zeros_like(target, dtype=_working_dtype(hidden))
        top, total = torch.full_like(picked, -torch.inf), torch.zeros_like(picked)
        keeps = len(weight) * picked.nbytes <= kept_bytes
        kept = _room_to_keep(weight, picked, ctx.needs_input_grad[1]) if keeps else None
        highests = []
        for block in blocks:
            logits = _block_logits(hidden, weight, bias, block)
            inside, column = _in_block(target, block)
            picked = torch.where(inside, logits.gather(1, column)[:, 0], picked)
            highests.append(logits.amax(1))
            space = logits if kept is None else _space(kept[block], len(hidden), block)
            logits = torch.exp(logits.sub_(highests[-1][:, None]), out=space)
            new_top = torch.maximum(top, highests[-1])
            total = total * (top - new_top).exp() + logits.sum(1) * (highests[-1] - new_top).exp()
            top = new_top
        normaliser = top + total.log()
        ctx.save_for_backward(hidden, weight, bias, target, normaliser)
        ctx.blocks, ctx.kept, ctx.highests = blocks, kept, highests
        return picked - normaliser

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, *grad_outputs):  # type: ignore[no-untyped-def]  # torch's signature
        hidden, weight, bias, target, normaliser = ctx.saved_tensors
        (grad,) = grad_outputs
        wants_hidden, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        kept, ctx.kept = ctx.kept, None
        grad_hidden = torch.zeros_like(hidden, dtype=normaliser.dtype) if wants_hidden else None
        grad_weight = _gradient_of(weight, kept) if wants_weight else None
        grad_bias = torch.empty_like(bias) if wants_bias else None
        for block, highest in zip(ctx.blocks, ctx.highests, strict=True):
            if kept is None:
                grad_logits = _block_logits(hidden, weight, bias, block)
                grad_logits.sub_(normaliser[:, None]).exp_().mul_(-grad[:, None])
            else:
                scale = -grad * (highest - normaliser).exp()
                grad_logits = _space(kept[block], len(hidden), block) * scale[:, None]
            inside, column = _in_block(target, block)
            grad_logits.scatter_add_(1, column, torch.where(inside, grad, 0)[:, None])
            grad_logits = grad_logits.to(weight.dtype)
            if grad_hidden is not None:
                grad_hidden += matmul_nt(grad_logits, weight[block].t())
            if grad_weight is not None:
                matmul_nt(grad_logits.t(), hidden.t(), out=grad_weight[block])
            if grad_bias is not None:
                grad_bias[block] = grad_logits.sum(0)
        grad_hidden = None if grad_hidden is None else grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_weight, grad_bias, None, None, None


def _room_to_keep(weight: Tensor, logps: Tensor, wants_gradient: bool) -> Tensor:
    """Memory for the exponentials of N tokens, (V, N) or more: if they fit there, that of the weight's gradient."""
    if wants_gradient and weight.dtype == logps.dtype and weight.shape[1] >= len(logps):
        return torch.empty_like(weight, memory_format=torch.contiguous_format)
    return logps.new_empty(len(weight), len(logps))


def _gradient_of(weight: Tensor, kept: Tensor | None) -> Tensor:
    """Memory for the weight's gradient: block by block, it may take the place of what was kept."""
    if kept is not None and kept.shape == weight.shape and kept.dtype == weight.dtype:
        return kept
    return torch.empty_like(weight, memory_format=torch.contiguous_format)


def _space(memory: Tensor, tokens: int, block: slice) -> Tensor:
    """The start of contiguous `memory` as (tokens, words of the block)."""
    words = block.stop - block.start
    return memory.view(-1)[: tokens * words].view(tokens, words)


def _block_logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, block: slice) -> Tensor:
    """Make a block's logits, in their working precision."""
    dtype = _working_dtype(hidden)
    if dtype != hidden.dtype:
        return nn.functional.linear(hidden, weight[block], None if bias is None else bias[block]).to(dtype)
    logits = matmul_nt(hidden, weight[block])
    return logits if bias is None else logits.add_(bias[block])


def _in_block(target: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Which targets (N,) are in a block of the vocabulary, and the column (N, 1) of each; the first for others."""
    inside = (target >= block.start) & (target < block.stop)
    return inside, torch.where(inside, target - block.start, 0)[:, None]


def _called_logps(project: Callable[[Tensor], Tensor], hidden: Tensor, target: Tensor) -> Tensor:
    def score(hidden: Tensor) -> Tensor:
        logits = project(hidden)
        logits = logits.to(_working_dtype(logits))
        return logits.gather(1, target[:, None]).squeeze(1) - logits.logsumexp(1)

    if not torch.is_grad_enabled():
        return score(hidden)
    return checkpoint(score, hidden, use_reentrant=False)


def _vocabulary(head: Any) -> int:
    return getattr(head, "out_features", None) or head.weight.shape[0]


def _chunks(count: int, others: int, values: Tensor, chunk_bytes: int) -> list[slice]:
    """Split `count` rows of logits, or columns, of `others` numbers each, into parts of `chunk_bytes` at most."""
    size = max(1, chunk_bytes // max(1, others * _working_dtype(values).itemsize))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _working_dtype(values: Tensor) -> torch.dtype:
    """Float32 at least: half precision is too coarse for a sum over a vocabulary."""
    return torch.promote_types(values.dtype, torch.float32)
