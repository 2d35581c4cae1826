"""Averages over every pair since the last log line, whatever the batches and ranks they came in."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor


class PairAverages:
    """Sums per phase and name, weighted by pairs: a short last batch counts for what it holds.

    Args:
        names: the metrics, in the order in which ranks exchange them.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._sums: dict[str, Tensor] = defaultdict(self._zeros)

    def add(self, phase: str, values: dict[str, Tensor]) -> None:
        """Add one batch: for every name a tensor of shape (pairs,)."""
        pairs = len(values[self.names[0]])
        sums = [values[name].detach().double().sum().item() for name in self.names]
        self._sums[phase] += torch.tensor([*sums, pairs], dtype=torch.float64)

    def take(self, phase: str, accelerator: Any) -> dict[str, float]:
        """Return the averages over all ranks since the last call, or nothing where no pair was seen.

        All ranks must call it together.
        """
        sums = accelerator.reduce(self._sums.pop(phase, self._zeros()).float().to(accelerator.device))
        *totals, pairs = sums.tolist()
        return {name: total / pairs for name, total in zip(self.names, totals, strict=True)} if pairs else {}

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self.names) + 1, dtype=torch.float64)
