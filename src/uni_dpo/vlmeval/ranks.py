"""The processes of a torchrun launch, each with its share of the rows, and how far they are."""

import os
import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

if TYPE_CHECKING:
    Bar = tqdm[Any]


_PATIENCE = timedelta(days=7)
"""How long one process waits for another to finish its rows."""


class Ranks:
    """This process among the others; alone without torchrun."""

    def __init__(self) -> None:
        """Join the group that torchrun's environment describes."""
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        if self.world > 1:
            import torch.distributed as dist

            if not dist.is_initialized():
                dist.init_process_group("gloo", timeout=_PATIENCE)  # carries no tensors, needs no GPU

    @property
    def first(self) -> bool:
        """Whether this process reports and scores."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Tell the user something, once."""
        if self.first:
            print(text, file=sys.stderr)

    def wait(self) -> None:
        """Wait until every process has come this far."""
        if self.world > 1:
            import torch.distributed as dist

            dist.barrier()

    def leave(self) -> None:
        """Leave the group."""
        if self.world > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


def is_first_process() -> bool:
    """Tell whether this process is the one that reports, with torchrun or without."""
    return int(os.environ.get("RANK", 0)) == 0


def progress_bar(title: str, total: int, *, done: int = 0, shown: bool = True) -> "Bar":
    """Return a bar over rows of which `done` were finished before."""
    every = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=done, desc=title, unit="row", mininterval=every, disable=not shown)
