"""How fast a training goes and what memory it takes, for its log."""

import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

GIB = 2**30


class Pace:
    """Counts what is trained on, and the time that it takes; what is done between, such as an evaluation, is left out.

    Args:
        clock: tells seconds.
    """

    def __init__(self, clock: Any = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._pairs = 0
        self._tokens: list[Tensor] = []

    def begin(self) -> None:
        """Count from now."""
        self._begun, self._pairs = self._clock(), 0
        self._tokens.clear()

    def add(self, pairs: int, tokens: Tensor) -> None:
        """Count one batch of this process: its pairs, and the scored tokens of their answers (any shape)."""
        self._pairs += pairs
        self._tokens.append(tokens.detach().sum())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that the block takes."""
        before = self._clock()
        try:
            yield
        finally:
            self._begun += self._clock() - before

    def take(self, accelerator: Any) -> dict[str, float]:
        """Return what all processes did per second since the last call, and this one's memory.

        All processes must call it together.

        Returns:
            `pairs_per_second`, `tokens_per_second`, `memory_gib`; nothing where no pair was trained on.
        """
        seconds = self._clock() - self._begun
        counts = torch.tensor([self._pairs, sum(float(part) for part in self._tokens)], dtype=torch.float32)
        pairs, tokens = accelerator.reduce(counts.to(accelerator.device)).tolist()
        self.begin()
        if not pairs or seconds <= 0:
            return {}
        return {
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": tokens / seconds,
            "memory_gib": memory_gib(accelerator.device),
        }


def memory_gib(device: Any) -> float:
    """Return the most memory that this process has held: of its accelerator, or else of the machine; in GiB."""
    kind = torch.device(device).type
    if kind != "cpu" and hasattr(module := torch.get_device_module(kind), "max_memory_allocated"):
        return float(module.max_memory_allocated()) / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
