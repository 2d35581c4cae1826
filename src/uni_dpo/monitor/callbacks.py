"""What happens to a ledger during a training: cut where it resumes, shown as a page, read for verdicts."""

import logging
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.reading import evidence_of_rows
from uni_dpo.ledger.verdicts import GOOD, judge
from uni_dpo.ledger.writing import PairLedger
from uni_dpo.report.card import CARD, write_card
from uni_dpo.report.run import PAGE, write_run_page

UNWRITTEN = (UniDPOError, OSError, ValueError, ArithmeticError)
"""Why a page or a card may not be written; none of it ends a training."""


class LedgerCallback(TrainerCallback):
    """Cuts a ledger where the training begins: at the step of the checkpoint that it resumes from, or at none."""

    def __init__(self, ledger: PairLedger) -> None:
        self._ledger = ledger

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """See `PairLedger.cut`."""
        if state.is_world_process_zero:
            self._ledger.cut(state.global_step)


class RunPage(TrainerCallback):
    """Writes the page of a run at each checkpoint and at the end; a page that cannot be written stops nothing."""

    def __init__(self, ledger: PairLedger, logger: logging.Logger) -> None:
        self._ledger, self._logger = ledger, logger

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the page with few images, so that a checkpoint takes no longer."""
        self._write(args, state, images=200)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the page with its images."""
        self._ledger.flush()
        self._write(args, state, images=3_000)

    def _write(self, args: Any, state: Any, images: int) -> None:
        if not state.is_world_process_zero:
            return
        try:
            page = write_run_page([args.output_dir], images=images, log=state.log_history)
        except UNWRITTEN as error:
            self._logger.warning(f"{args.output_dir}/{PAGE} could not be written: {error}")
        else:
            self._logger.info(f"The page of this run: {page}")


def write_run_card(output: str, logger: logging.Logger) -> None:
    """Write the model card of a run; one that cannot be written stops nothing."""
    try:
        write_card(output)
    except UNWRITTEN as error:
        logger.warning(f"{output}/{CARD} stays as it was: {error}")


class VerdictLines(TrainerCallback):
    """Says what the numbers of a run mean, one line for each metric that is to be watched.

    Args:
        ledger: of the first process, whose pairs stand for all.
        settings: of the run; see `Evidence`.
        steps: how often.
        logger: where it is said.
    """

    def __init__(self, ledger: PairLedger, settings: Mapping[str, Any], steps: int, logger: logging.Logger) -> None:
        self._ledger, self._settings, self._steps, self._logger = ledger, settings, steps, logger
        self._said = 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Judge where enough steps have been taken since the last time."""
        due = state.global_step - self._said >= self._steps or "train_runtime" in (logs or {})
        if not state.is_world_process_zero or not due or state.global_step == self._said:
            return
        self._said = state.global_step
        verdicts = judge(evidence_of_rows(self._settings, state.log_history, self._ledger.rows()))
        for verdict in verdicts:
            if verdict.state != GOOD:
                self._logger.info(f"step {state.global_step}, {verdict.state}: {verdict.sentence()}")
        if verdicts and all(verdict.state == GOOD for verdict in verdicts):
            self._logger.info(f"step {state.global_step}: {len(verdicts)} of {len(verdicts)} metrics are good.")
