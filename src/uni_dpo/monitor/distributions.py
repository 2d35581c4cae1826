"""How weights and margins are distributed over the pairs, for TensorBoard, wandb and Trackio."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import TrainerCallback

NAMES = ("w_qual", "w_perf", "policy_margin", "reward_margin", "chosen_drift")
"""What is shown, as `uni_dpo/pairs/NAME`; see `ledger.summary.QUANTITIES`."""


class Distributions(TrainerCallback):
    """Gives trackers a histogram of each of `NAMES` at every logging step, over this process's pairs since the last.

    Args:
        callbacks: tells the trainer's callbacks, those of the trackers among them.
    """

    def __init__(self, callbacks: Callable[[], Iterable[Any]]) -> None:
        self._callbacks = callbacks
        self._waiting: list[Mapping[str, Tensor | None]] = []

    def add(self, seen: Mapping[str, Tensor | None]) -> None:
        """Keep the numbers of a batch of pairs, by their names in `ledger.columns.NUMBERS`, until they are shown."""
        if self._sinks():
            kept = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected", "w_qual", "w_perf")
            self._waiting.append({name: value.detach() for name in kept if (value := seen.get(name)) is not None})

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Show what has been kept."""
        if "loss" not in (logs or {}):
            return
        found, sinks = quantities(self._waiting), self._sinks()
        self._waiting.clear()
        if state.is_world_process_zero and found:
            for sink in sinks:
                sink(found, state.global_step)

    def _sinks(self) -> list[Callable[[Mapping[str, np.ndarray], int], None]]:
        found: list[Callable[[Mapping[str, np.ndarray], int], None]] = []
        for callback in self._callbacks():
            tracker = getattr(callback, "_trackio", None) or getattr(callback, "_wandb", None)
            if (writer := getattr(callback, "tb_writer", None)) is not None:
                found.append(_to_tensorboard(writer))
            elif hasattr(tracker, "Histogram"):
                found.append(_to_tracker(tracker))
        return found


def quantities(batches: Iterable[Mapping[str, Tensor | None]]) -> dict[str, np.ndarray]:
    """Return the values of `NAMES` over batches, (pairs,) float32 each; what a loss does not have is left out."""
    parts: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    for batch in batches:
        values = {**batch, **_margins(batch)}
        for name in NAMES:
            if (value := values.get(name)) is not None:
                parts[name].append(value.float())
    return {name: torch.cat(found).cpu().numpy() for name, found in parts.items() if found}


def _margins(batch: Mapping[str, Tensor | None]) -> dict[str, Tensor]:
    names = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected")
    chosen, rejected, reference, other = (batch.get(name) for name in names)
    found = {}
    if chosen is not None and rejected is not None:
        found["policy_margin"] = found["reward_margin"] = chosen - rejected
        if reference is not None and other is not None:
            found["reward_margin"] = chosen - rejected - (reference - other)
            found["chosen_drift"] = chosen - reference
    return found


def _to_tensorboard(writer: Any) -> Callable[[Mapping[str, np.ndarray], int], None]:
    def show(found: Mapping[str, np.ndarray], step: int) -> None:
        for name, values in found.items():
            if np.isfinite(values).all():
                writer.add_histogram(f"train/uni_dpo/pairs/{name}", values, step)

    return show


def _to_tracker(tracker: Any) -> Callable[[Mapping[str, np.ndarray], int], None]:
    def show(found: Mapping[str, np.ndarray], step: int) -> None:
        shown = {f"train/uni_dpo/pairs/{name}": tracker.Histogram(values) for name, values in found.items()}
        tracker.log({**shown, "train/global_step": step})

    return show
