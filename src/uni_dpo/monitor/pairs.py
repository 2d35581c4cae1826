"""What a trainer of pairs keeps and says of its run: a row for every pair, a page, verdicts, when to stop."""

import logging
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer
from transformers.trainer_callback import ProgressCallback
from transformers.trainer_utils import get_last_checkpoint

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger import LedgerArguments
from uni_dpo.ledger.verdicts import ENOUGH, FALL
from uni_dpo.ledger.writing import PairLedger
from uni_dpo.monitor.console import VERBOSE
from uni_dpo.monitor.ledger import LedgerCallback, write_run_card
from uni_dpo.monitor.progress import Pace, PairAverages, ProgressLines

HISTOGRAMS = ("w_qual", "w_perf", "policy_margin", "reward_margin", "chosen_drift")
"""What trackers show at every logging step over this process's pairs since the last, as `uni_dpo/pairs/NAME`; see
`ledger.summary.QUANTITIES`."""
SHOWN = ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected", "w_qual", "w_perf")
"""The numbers of a batch that they are made of; see `ledger.columns.NUMBERS`."""


def trackers_of(callbacks: Iterable[Any]) -> list[Any]:
    """Return those of a trainer's trackers that know histograms: TensorBoard's writer, the modules of others."""
    names = ("tb_writer", "_trackio", "_wandb")
    found = [next(filter(None, (getattr(one, name, None) for name in names)), None) for one in callbacks]
    return [one for one in found if hasattr(one, "add_histogram") or hasattr(one, "Histogram")]


def show_distributions(trackers: Iterable[Any], found: Mapping[str, np.ndarray], step: int) -> None:
    """Give trackers the values of `HISTOGRAMS`."""
    for tracker in trackers:
        if not hasattr(tracker, "add_histogram"):
            shown = {f"train/uni_dpo/pairs/{name}": tracker.Histogram(values) for name, values in found.items()}
            tracker.log({**shown, "train/global_step": step})
            continue
        for name, values in found.items():
            if np.isfinite(values).all():
                tracker.add_histogram(f"train/uni_dpo/pairs/{name}", values, step)


def quantities(batches: Sequence[Mapping[str, Tensor]]) -> dict[str, np.ndarray]:
    """Return the values of `HISTOGRAMS` over batches, (pairs,) float32 each; what a loss does not have is left out."""
    names = set.intersection(*map(set, batches)) if batches else ()
    seen = {name: torch.cat([batch[name] for batch in batches]) for name in names}
    if {"policy_chosen", "policy_rejected"} <= seen.keys():
        seen["policy_margin"] = seen["reward_margin"] = seen["policy_chosen"] - seen["policy_rejected"]
        if {"reference_chosen", "reference_rejected"} <= seen.keys():
            seen["reward_margin"] = seen["policy_margin"] - (seen["reference_chosen"] - seen["reference_rejected"])
            seen["chosen_drift"] = seen["policy_chosen"] - seen["reference_chosen"]
    return {name: seen[name].float().cpu().numpy() for name in HISTOGRAMS if name in seen}


Seen = dict[str, Tensor | None]
"""Numbers of the pairs of a batch by their names in `ledger.columns.NUMBERS`, (pairs,) each."""


class WatchesPairs(Trainer):
    """A trainer that records its pairs. A subclass calls `watch` once it is made, and `note_pairs` with each batch."""

    ledger: PairLedger | None = None
    _stops_on_collapse = False
    _split = "eval"

    def watch(
        self, settings: LedgerArguments, evidence: Mapping[str, Any], ledger: PairLedger | None, logger: logging.Logger
    ) -> None:
        """Keep a ledger from now on, if there is one, and say and do what the settings ask for.

        Args:
            settings: as the user has set them.
            evidence: the settings that verdicts rest on; see `Evidence`.
            ledger: where rows go.
            logger: where it is said.
        """
        self.ledger, self._evidence, self._logger = ledger, evidence, logger
        self._stops_on_collapse = settings.stop_on == "collapse"
        self._pace, self._drift = Pace(), PairAverages(("drift",))
        self._first_drift: float | None = None
        self._since_log: list[Mapping[str, Tensor]] = []
        if ledger is not None:
            self.add_callback(LedgerCallback(ledger, evidence, settings.uni_dpo_verdict_steps, logger))

    def show_lines(self, lines: ProgressLines) -> None:
        """Print a line where transformers prints a dict; `--verbose` keeps the dict."""
        if os.environ.get(VERBOSE):
            return
        for kind in (ProgressCallback, PrinterCallback):
            self.remove_callback(kind)
        if not any(isinstance(callback, ProgressLines) for callback in self.callback_handler.callbacks):
            self.add_callback(lines)

    def note_pairs(self, phase: str, keys: Tensor | None, seen: Seen) -> None:
        """Put the pairs of a batch into the ledger, and see whether their chosen answers fall.

        Args:
            phase: `train` or `eval`.
            keys: what the ledger knows the pairs by, int64 (pairs,); None where the batch carries none.
            seen: their numbers.
        """
        trains, passes = phase == "train", self.state.epoch or 0.0
        if self.ledger is not None and keys is not None:
            self.ledger.add(
                "train" if trains else self._split,
                self.state.global_step + trains,
                math.floor(passes) + 1 if trains else max(1, math.ceil(passes)),
                keys,
                seen,
            )
            chosen, rejected = seen.get("tokens_chosen"), seen.get("tokens_rejected")
            if trains and chosen is not None and rejected is not None:
                self._pace.add(len(keys), chosen + rejected)
            if trains and trackers_of(self.callback_handler.callbacks):
                shown = {name: value.detach() for name in SHOWN if (value := seen.get(name)) is not None}
                self._since_log.append(shown)
        if trains and self._stops_on_collapse:
            self._drift.add("train", {"drift": self._drift_per_token(seen)})

    def _drift_per_token(self, seen: Seen) -> Tensor:
        """How far the chosen answers of a batch are from the reference, or from 0 without one, in nats per token."""
        chosen, reference, tokens = (seen.get(n) for n in ("policy_chosen", "reference_chosen", "tokens_chosen"))
        assert chosen is not None
        assert tokens is not None
        drift = chosen.detach() if reference is None else chosen.detach() - reference
        return drift if self._evidence["averaged"] else drift / tokens

    def _stop_where_chosen_answers_fall(self) -> None:
        """See `stop_on`; every process decides the same. The error names the last checkpoint, from before the fall."""
        drift = self._drift.take("train", self.accelerator).get("drift")
        if drift is None:
            return
        if self._first_drift is None:
            self._first_drift = 0.0 if self._evidence["has_reference"] else drift
        lost, step = self._first_drift - drift, self.state.global_step
        if lost <= FALL or step < ENOUGH:
            return
        checkpoint = get_last_checkpoint(self.args.output_dir) if Path(self.args.output_dir).is_dir() else None
        kept = f"the last good checkpoint is {checkpoint}" if checkpoint else "no checkpoint was written before"
        raise UniDPOError(
            f"stop_on: collapse: at step {step} chosen answers have lost {lost:.2f} nats per token; {kept}. Raise "
            "uni_dpo_nll_lambda or lower learning_rate, and train again"
        )

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log with the pace of the training beside the metrics; then stop where `stop_on` says so."""
        if "loss" in logs and self.ledger is not None:
            logs.update(self._pace.take(self.accelerator))
        super().log(logs, *args, **kwargs)
        if "loss" in logs and self.ledger is not None:
            found, trackers = quantities(self._since_log), trackers_of(self.callback_handler.callbacks)
            self._since_log.clear()
            if found and self.is_world_process_zero():
                show_distributions(trackers, found, self.state.global_step)
        if "loss" in logs and self._stops_on_collapse:
            self._stop_where_chosen_answers_fall()

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; what the ledger holds reaches the disk however that ends."""
        if self.ledger is not None:
            self._pace.begin()
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.ledger is not None:
                self.ledger.flush()

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluate one dataset; an earlier evaluation at the same step makes room in the ledger."""
        self._split = str(kwargs.get("metric_key_prefix", "eval"))
        if self.ledger is None:
            return super().evaluation_loop(*args, **kwargs)
        self.ledger.forget(self._split, self.state.global_step)
        with self._pace.paused():
            output = super().evaluation_loop(*args, **kwargs)
        if not self.is_in_train:
            self.ledger.flush()
        return output

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the library's card, and ours in its place where there is a ledger."""
        super().create_model_card(*args, **kwargs)
        if self.ledger is not None and self.is_world_process_zero():
            write_run_card(str(self.args.output_dir), self._logger)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Save; the ledger first, since a run that resumes from here does not do these steps again."""
        if self.ledger is None:
            super()._save_checkpoint(*args, **kwargs)
            return
        with self._pace.paused():
            self.ledger.flush()
            super()._save_checkpoint(*args, **kwargs)
