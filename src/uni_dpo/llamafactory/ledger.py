"""The ledger of a LlamaFactory run, opened over its datasets, and what was trained on what."""

from collections.abc import Iterator
from typing import Any

from llamafactory.extras import logging

from uni_dpo.ledger.writing import KEY, PairLedger
from uni_dpo.llamafactory.reference_cache import DigestedPairs
from uni_dpo.llamafactory.run_context import current_run
from uni_dpo.monitor.opening import changed_settings, device_words, versions
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


def run_record(model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any) -> dict[str, Any]:
    """Describe a run by LlamaFactory's four groups of arguments.

    Returns:
        `changed` (settings that differ from their defaults), `evidence` (see `Evidence.settings`), `versions`,
        `device`, `model`, `datasets`, `library`.
    """
    return {
        "library": "llama-factory",
        "model": model_args.model_name_or_path,
        "datasets": {"train": data_args.dataset or [], "eval": data_args.eval_dataset or []},
        "changed": changed_settings(finetuning_args, training_args, data_args, model_args),
        "evidence": _evidence(finetuning_args, training_args),
        "versions": versions(),
        "device": device_words(training_args),
    }


def _evidence(finetuning_args: Any, training_args: Any) -> dict[str, Any]:
    found = {
        "pref_loss": finetuning_args.pref_loss,
        "beta": finetuning_args.pref_beta,
        "learning_rate": training_args.learning_rate,
        "averaged": finetuning_args.averages_logps,
        "has_reference": finetuning_args.use_ref_model,
    }
    if finetuning_args.uses_uni_dpo:
        objective = finetuning_args.uni_dpo_config()
        found |= {name: getattr(objective, name) for name in ("eta", "tau_ref", "gamma", "nll_lambda", "tau_good")}
    return found
