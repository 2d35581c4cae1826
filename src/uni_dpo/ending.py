"""Processes that end a run together."""

from typing import Any

from transformers import Trainer


class EndsTogether(Trainer):
    """A trainer whose processes wait for one another before they go on from training or evaluation.

    The threads of gloo outlive the group where DistributedDataParallel was used, and hold the tensors of their last
    operations. A process that ends before they let go is aborted by them ("terminate called without an active
    exception"), and torchrun then kills the others, which may still be saving. What has been waited for is let go.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train as `Trainer` does, until every process has."""
        output = super().train(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        return output

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate as `Trainer` does, until every process has."""
        metrics = super().evaluate(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        return metrics
