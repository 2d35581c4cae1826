"""What a DPO run needs beside LlamaFactory's own argument objects: a context, a ledger, a record of its settings."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from llamafactory.extras import logging

from uni_dpo.data.ranking import ALL_PAIRS, PairChoice
from uni_dpo.ledger.writing import KEY, PairLedger
from uni_dpo.llamafactory.reference_cache import DigestedPairs, ReferenceCache, datasets_of
from uni_dpo.monitor.ledger import changed_settings
from uni_dpo.monitor.ledger import open_ledger as _open
from uni_dpo.monitor.progress import ProgressLines
from uni_dpo.shared_prefix.image_store import ImageStore


@dataclass(frozen=True)
class RunContext:
    """How the seams of one run work; as it stands, they do what LlamaFactory does.

    Attributes:
        needs_scores: whether rows must have scores.
        keeps_ledger: whether what happens to every pair is recorded, for which rows are numbered.
        reference_beta: β where the logged rewards are β times what the policy gained on a reference; None elsewhere.
        starts_from_adapter: whether the reference is the model with the adapter that it starts from.
        reference_cache: where reference log-probabilities are kept.
        image_store: where image features are kept.
        record: what the page of the run says of its settings; see `run_record`.
        pair_choice: which pairs of ranked answers count.
    """

    needs_scores: bool = False
    keeps_ledger: bool = False
    reference_beta: float | None = None
    starts_from_adapter: bool = False
    reference_cache: ReferenceCache | None = None
    image_store: ImageStore | None = None
    record: Mapping[str, Any] = field(default_factory=dict)
    pair_choice: PairChoice = ALL_PAIRS

    @property
    def unit(self) -> str:
        """What a batch is counted in."""
        return "samples" if self is _OWN else "pairs"


_OWN = RunContext()
_current: ContextVar[RunContext] = ContextVar("uni_dpo_run", default=_OWN)


def current_run() -> RunContext:
    """Return the run that goes on now, or one of LlamaFactory's own."""
    return _current.get()


def progress_lines() -> ProgressLines:
    """Return what prints the lines of the run that goes on when they are printed."""
    return ProgressLines(lambda: current_run().reference_beta, lambda: current_run().unit)


@contextmanager
def running(run: RunContext) -> Iterator[None]:
    """Let the seams work for `run` in this block."""
    token = _current.set(run)
    try:
        yield
    finally:
        _current.reset(token)


logger = logging.get_logger(f"llamafactory.{__name__}")  # below LlamaFactory's own, which shows what is INFO


def open_ledger(trainer: Any) -> PairLedger | None:
    """Return the ledger of a trainer's run; the first process writes the texts of its pairs.

    Returns:
        None where the data were tokenized without what a ledger needs.
    """
    datasets = [found.pairs if isinstance(found, DigestedPairs) else found for found in datasets_of(trainer)]
    if any(KEY not in (dataset.column_names or (KEY,)) for dataset in datasets):
        logger.warning_rank0(
            "uni_dpo_ledger: no ledger is kept, because the data under tokenized_path were tokenized without one; "
            "delete that folder to tokenize again."
        )
        return None
    return _open(trainer.args, datasets, current_run().record)


def run_record(model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any) -> dict[str, Any]:
    """Describe a run by LlamaFactory's four groups of arguments.

    Returns:
        `changed` (settings that differ from their defaults), `evidence` (see `Evidence.settings`), `model`, `datasets`,
        `library`.
    """
    return {
        "library": "llama-factory",
        "model": model_args.model_name_or_path,
        "datasets": {"train": data_args.dataset or [], "eval": data_args.eval_dataset or []},
        "changed": changed_settings(finetuning_args, training_args, data_args, model_args),
        "evidence": {
            **(vars(finetuning_args.uni_dpo_config()) if finetuning_args.uses_uni_dpo else {}),
            "pref_loss": finetuning_args.pref_loss,
            "beta": finetuning_args.pref_beta,
            "learning_rate": training_args.learning_rate,
            "averaged": finetuning_args.averages_logps,
            "has_reference": finetuning_args.use_ref_model,
        },
    }
