"""The ledger of a LlamaFactory run: opened over its datasets, cut where it resumes."""

import json
from collections.abc import Iterator
from typing import Any

from llamafactory.extras import logging
from transformers import TrainerCallback

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.columns import ledger_folder, record_file, texts_file
from uni_dpo.ledger.evidence import evidence_of_rows
from uni_dpo.ledger.texts import KEY, fingerprint, names_of, pair_texts, write_texts
from uni_dpo.ledger.verdicts import GOOD, judge
from uni_dpo.ledger.writing import PairLedger
from uni_dpo.llamafactory.reference_cache import DigestedPairs
from uni_dpo.llamafactory.run_context import current_run
from uni_dpo.report.card import CARD, write_card
from uni_dpo.report.run import PAGE, write_run_page
from uni_dpo.storage.writing import write_text

logger = logging.get_logger(f"llamafactory.{__name__}")  # below LlamaFactory's own, which shows what is INFO


def open_ledger(trainer: Any) -> PairLedger | None:
    """Return the ledger of a trainer's run; the first process writes the texts of its pairs.

    Returns:
        None where the data were tokenized without what a ledger needs.
    """
    datasets = list(_datasets(trainer))
    if any(KEY not in (dataset.column_names or (KEY,)) for dataset in datasets):
        logger.warning_rank0(
            "uni_dpo_ledger: no ledger is kept, because the data under tokenized_path were tokenized without one; "
            "delete that folder to tokenize again."
        )
        return None
    texts = pair_texts(dataset for dataset in datasets if hasattr(dataset, "__len__"))
    if trainer.is_world_process_zero():
        write_texts(texts, texts_file(trainer.args.output_dir))
        record = {**current_run().record, "pairs": len(texts), "fingerprint": fingerprint(texts)}
        write_text(record_file(trainer.args.output_dir), json.dumps(record, indent=1, default=str))
    arguments = trainer.args
    return PairLedger(
        ledger_folder(arguments.output_dir), names_of(texts), arguments.process_index, arguments.world_size
    )


def _datasets(trainer: Any) -> Iterator[Any]:
    for split in (trainer.train_dataset, trainer.eval_dataset):
        for dataset in split.values() if isinstance(split, dict) else [split]:
            if dataset is not None:
                yield dataset.pairs if isinstance(dataset, DigestedPairs) else dataset


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

    def __init__(self, ledger: PairLedger) -> None:
        self._ledger = ledger

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
        except (UniDPOError, OSError, ValueError, ArithmeticError) as error:
            logger.warning_rank0(f"{args.output_dir}/{PAGE} could not be written: {error}")
        else:
            logger.info_rank0(f"The page of this run: {page}")


def write_run_card(output: str) -> None:
    """Write the model card of a run; one that cannot be written stops nothing."""
    try:
        write_card(output)
    except (UniDPOError, OSError, ValueError, ArithmeticError) as error:
        logger.warning_rank0(f"{output}/{CARD} stays as LlamaFactory wrote it: {error}")


class VerdictLines(TrainerCallback):
    """Says what the numbers of a run mean, one line for each metric that is to be watched.

    Args:
        ledger: of the first process, whose pairs stand for all.
        steps: how often.
    """

    def __init__(self, ledger: PairLedger, steps: int) -> None:
        self._ledger, self._steps, self._said = ledger, steps, 0

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Judge where enough steps have been taken since the last time."""
        due = state.global_step - self._said >= self._steps or "train_runtime" in (logs or {})
        if not state.is_world_process_zero or not due or state.global_step == self._said:
            return
        self._said = state.global_step
        evidence = evidence_of_rows(current_run().record.get("evidence", {}), state.log_history, self._ledger.rows())
        verdicts = judge(evidence)
        for verdict in verdicts:
            if verdict.state != GOOD:
                logger.info_rank0(f"step {state.global_step}, {verdict.state}: {verdict.sentence()}")
        if verdicts and all(verdict.state == GOOD for verdict in verdicts):
            logger.info_rank0(f"step {state.global_step}: {len(verdicts)} of {len(verdicts)} metrics are good.")
