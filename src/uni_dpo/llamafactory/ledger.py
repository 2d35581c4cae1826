"""The ledger of a LlamaFactory run, opened over its datasets."""

from collections.abc import Iterator
from typing import Any

from llamafactory.extras import logging

from uni_dpo.ledger.texts import KEY
from uni_dpo.ledger.writing import PairLedger
from uni_dpo.llamafactory.reference_cache import DigestedPairs
from uni_dpo.llamafactory.run_context import current_run
from uni_dpo.monitor.opening import open_ledger as _open

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
    return _open(trainer.args, datasets, current_run().record)


def _datasets(trainer: Any) -> Iterator[Any]:
    for split in (trainer.train_dataset, trainer.eval_dataset):
        for dataset in split.values() if isinstance(split, dict) else [split]:
            if dataset is not None:
                yield dataset.pairs if isinstance(dataset, DigestedPairs) else dataset
