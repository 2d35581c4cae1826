"""The ledger of a LlamaFactory run: opened over its datasets, cut where it resumes."""

from collections.abc import Iterator
from typing import Any

from llamafactory.extras import logging
from transformers import TrainerCallback

from uni_dpo.ledger.columns import ledger_folder, texts_file
from uni_dpo.ledger.texts import KEY, names_of, pair_texts, write_texts
from uni_dpo.ledger.writing import PairLedger
from uni_dpo.llamafactory.reference_cache import DigestedPairs

logger = logging.get_logger(f"llamafactory.{__name__}")  # below LlamaFactory's own, which shows what is INFO


def open_ledger(trainer: Any) -> PairLedger | None:
    """The ledger of a trainer's run; the first process writes the texts of its pairs.

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
