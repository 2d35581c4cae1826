"""TRL's DPO trainer with the Uni-DPO objective in the one place where losses are made.

Which of this folder's two files knows the TRL that is installed is found here.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from trl.trainer import dpo_trainer
from trl.trainer.dpo_config import DPOConfig

from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.writing import KEY
from uni_dpo.monitor.ledger import open_ledger
from uni_dpo.monitor.pairs import Seen, WatchesPairs
from uni_dpo.monitor.progress import ProgressLines
from uni_dpo.objective import PairLogps
from uni_dpo.trainer_mixins import EndsTogether, KeepsAdapterAsReference, LoadsByPublishedNames, refuse_not_a_number
from uni_dpo.trl.arguments import TRLUniDPOConfig
from uni_dpo.trl.data import SCORES, check_scores, refuse_videos
from uni_dpo.trl.ledger import NamedRows, logger, name_rows, run_record
from uni_dpo.weighted_losses import RemembersLosses, WeightedLosses, weights_among

TRL_1 = hasattr(dpo_trainer, "add_fused_lm_head")
if TRL_1:
    from uni_dpo.trl.version_1 import FusedPairTrainer as PairTrainer
    from uni_dpo.trl.version_1 import MixedSampler as SeeingSampler
elif hasattr(dpo_trainer.DPOTrainer, "concatenated_forward"):
    from uni_dpo.trl.version_0_24 import ConcatenatedPairTrainer as PairTrainer
    from uni_dpo.trl.version_0_24 import TypedSampler as SeeingSampler  # type: ignore[assignment]
else:
    raise UniDPOError("this TRL has another DPOTrainer: pip install trl==1.16.0, or beside LlamaFactory trl==0.24.0")

__all__ = ["TRL_1", "SeeingSampler", "UniDPOTrainer"]


class UniDPOTrainer(
    WatchesPairs, EndsTogether, KeepsAdapterAsReference, RemembersLosses, LoadsByPublishedNames, PairTrainer
):
    """Trains with the loss `uni_dpo` or weighted losses; with any loss of TRL's it is TRL's trainer.

    Vision data go through the model's own processor when a batch is made, so that every family whose processor
    takes texts and images together trains, also those whose images have no fixed size (Qwen-VL), with any number
    of images in a row. A prompt with images is never cut.

    Args:
        model, ref_model, train_dataset, …: as TRL's `DPOTrainer` takes them.
        args: a `TRLUniDPOConfig`; the published settings when None.
        about: what the page of the run says beside the settings: `datasets` (`train` and `eval` → a name, by which the
            ledger calls their rows too) and `changed` (further settings and their values).

    Raises:
        UniDPOError: `uni_dpo` is among the losses, and a dataset has no scores or some that are no numbers.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: DPOConfig | None = None,
        data_collator: Any = None,
        about: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is None:
            name = model if isinstance(model, str) else model.config._name_or_path
            args = TRLUniDPOConfig(f"{name.split('/')[-1]}-Uni-DPO")
        ours = args if isinstance(args, TRLUniDPOConfig) else None
        self.columns: tuple[str, str] | None = None
        if ours is not None and ours.losses:
            self.objective = WeightedLosses(ours.loss_plan(), lambda value: self.accelerator.reduce(value, "mean"))
        self._terms: dict[str, Tensor] = {}
        self._seen: Seen = {}
        if ours is not None and ours.uses_uni_dpo:
            self.columns = ours.score_columns
            for name, dataset in _named(kwargs.get("train_dataset"), kwargs.get("eval_dataset")):
                refuse_videos(dataset, name)
                check_scores(dataset, ours.score_columns, name)
        rows: list[NamedRows] = []
        if ours is not None and ours.uni_dpo_ledger and data_collator is None:
            rows = name_rows(kwargs, ours, about or {})
            if rows and all(found.has_scores for found in rows):  # the ledger has them for every loss
                self.columns = ours.score_columns
        super().__init__(model, ref_model, args, data_collator, **kwargs)
        if ours is None:
            return
        if ours.uni_dpo_ledger and not rows and self.is_world_process_zero():
            logger.warning("uni_dpo_ledger: no ledger is kept, because the data collator is not this trainer's own")
        self.show_lines(ProgressLines(lambda: ours.beta))
        record = run_record(ours, model, about or {}, self.averaged_losses)
        self.watch(ours, record["evidence"], open_ledger(ours, rows, record) if rows else None, logger)

    def take_keys(self, batch: dict[str, Any]) -> Tensor | None:
        """Remove from a batch what the ledger knows its pairs by, and return it, int64 (pairs,)."""
        self._seen = {}
        return batch.pop(KEY, None)

    def see(self, **numbers: Tensor | None) -> None:
        """Keep numbers of the pairs of a batch for the ledger, by their names in `ledger.columns.NUMBERS`."""
        self._seen |= {name: None if value is None else value.detach() for name, value in numbers.items()}

    def note_seen(self, phase: str, keys: Tensor | None) -> None:
        """Put what was seen of a batch into the ledger; see `note_pairs`."""
        self.note_pairs(phase, keys, self._seen)

    def scores_in(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
        """Return the scores of a batch, (pairs,) each; None where no loss needs them.

        Raises:
            UniDPOError: it has none, and `uni_dpo` is among the losses.
        """
        if self.objective is None or self.objective.plan.objective is None:
            return None
        if any(name not in batch for name in SCORES):
            raise UniDPOError(f"the data collator has to put {' and '.join(SCORES)} into the batch")
        return batch[SCORES[0]], batch[SCORES[1]]

    def pair_losses(
        self, logps: PairLogps, lengths: tuple[Tensor, Tensor], scores: tuple[Tensor, Tensor] | None, phase: str
    ) -> Tensor:
        """Return the weighted losses of each pair, (pairs,); what they are made of is kept for `logged_terms`.

        Args:
            logps: averaged or summed as the first loss takes them.
            lengths: scored tokens of the chosen and of the rejected answers, (pairs,) each.
            scores: as of `scores_in`.
            phase: `train` or `eval`.

        Raises:
            UniDPOError: the loss is no finite number.
        """
        assert self.objective is not None
        device = logps.policy_chosen.device
        if scores is not None:
            scores = scores[0].to(device), scores[1].to(device)
        losses, self._terms = self.objective(logps, lengths, scores, trains=phase == "train")
        refuse_not_a_number(losses.detach().mean(), self.state.global_step)
        self.see(loss=losses, **weights_among(self._terms))
        return losses

    def logged_terms(self) -> dict[str, float]:
        """Means over all processes of what the latest losses were made of."""
        gather = self.accelerator.gather_for_metrics
        return {name: gather(term.float()).mean().item() for name, term in self._terms.items()}


def _named(train: Any, evaluation: Any) -> list[tuple[str, Any]]:
    """Every dataset of a run, and what messages call it."""
    several = evaluation if isinstance(evaluation, dict) else {"eval": evaluation}
    return [(name, data) for name, data in {"train": train, **several}.items() if data is not None]
