"""What a DPO run needs beside LlamaFactory's own argument objects."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from uni_dpo.data.ranking import ALL_PAIRS, PairChoice
from uni_dpo.llamafactory.reference_cache import ReferenceCache
from uni_dpo.monitor.progress import ProgressLines
from uni_dpo.shared_prefix import ImageStore


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
        record: what the page of the run says of its settings; see `record.run_record`.
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
