"""The look at the training data before a model is loaded: all faults of all datasets, in one run."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from uni_dpo.data.checks.check import CheckReport, check_entry
from uni_dpo.data.dataset_info import read_entry
from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.ranking import ALL_PAIRS, PairChoice


@dataclass(frozen=True)
class Preflight:
    """What the preflight saw in data that can be trained on.

    Attributes:
        rows: how many rows were checked.
        scored: how many pairs of them have both scores.
        warnings: what the user should know, one line each.
    """

    rows: int = 0
    scored: int = 0
    warnings: list[str] = field(default_factory=list)


def preflight(
    dataset_names: Sequence[str],
    dataset_dir: str | Path,
    media_dir: str | Path | None = None,
    *,
    scores_required: bool = True,
    tau_good: float | None = None,
    max_samples: int | None = None,
    choice: PairChoice = ALL_PAIRS,
) -> Preflight:
    """Check every row of the datasets that a training run names, as LlamaFactory would read them.

    Args:
        dataset_names: names in `dataset_dir`'s `dataset_info.json`.
        dataset_dir: the folder with `dataset_info.json`, or "ONLINE" or "REMOTE:…" as LlamaFactory has it.
        media_dir: where image paths start, and then none may leave it. Without it, or where it is `dataset_dir`
            (LlamaFactory's default), they start there, or beside the data, and may also be absolute.
        scores_required: whether the loss needs scores.
        tau_good: the score from which the NLL term is active; None where the loss has none.
        max_samples: LlamaFactory's own limit of rows per dataset.
        choice: which pairs of ranked answers count.

    Raises:
        PreferenceDataError: with the first 20 faults and the count of all.
    """
    if str(dataset_dir) == "ONLINE" or str(dataset_dir).startswith("REMOTE:"):
        return _summary([], list(dataset_names), tau_good)
    root = None if media_dir is None or Path(media_dir) == Path(dataset_dir) else media_dir
    unchecked: list[str] = []
    reports: list[CheckReport] = []
    faults: list[Fault] = []
    total = 0
    for name in dataset_names:
        try:
            entry = read_entry(name, dataset_dir)
            if entry.path is None:
                unchecked.append(name)
                continue
            report = check_entry(
                entry,
                start=media_dir or dataset_dir,
                root=root,
                scores_required=scores_required,
                limit=max_samples,
                choice=choice,
            )
        except PreferenceDataError as error:
            faults += error.faults or [Fault("dataset", "", str(error), "")]
            total += max(1, len(error.faults))
        else:
            reports.append(report)
            faults += report.faults + report.whole
            total += report.fault_counts.total()
    if faults:
        raise PreferenceDataError.of(faults, total=total)
    return _summary(reports, unchecked, tau_good)


def _summary(reports: Sequence[CheckReport], unchecked: list[str], tau_good: float | None) -> Preflight:
    audits = [report.audit for report in reports if report.audit is not None]
    scored = [audit for audit in audits if audit.margins.count]
    warnings = [f"{report.dataset}: {line}" for report in reports for line in report.warnings]
    warnings += [f"{name}: is not a local file and was not checked" for name in unchecked]
    highest = max((audit.score_chosen.quantiles[-1] for audit in scored), default=None)
    if highest is not None and tau_good is not None and highest < tau_good:
        lowest = min(audit.score_chosen.quantiles[0] for audit in scored)
        warnings.append(
            f"no chosen score reaches tau_good = {tau_good:g} (they lie in {lowest:g} … {highest:g}): "
            "the NLL term can never be active"
        )
    return Preflight(sum(report.rows for report in reports), sum(audit.margins.count for audit in scored), warnings)
