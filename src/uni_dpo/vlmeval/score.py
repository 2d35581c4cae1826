"""Scoring by VLMEvalKit's own `evaluate`, with the judge that was asked for and no other."""

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.vlmeval.load import Loaded
from uni_dpo.vlmeval.outcomes import Outcomes, read_outcomes
from uni_dpo.vlmeval.table import safe_name

EXACT = "exact_matching"


@dataclass(frozen=True)
class Score:
    """One model on one benchmark."""

    metric: str
    value: float
    metrics: Mapping[str, float]
    """Everything VLMEvalKit returned, flattened: `Overall`, and per category or split."""
    judge: str
    outcomes: Outcomes | None
    """What the value is made of, for intervals; `None` where it cannot be told from VLMEvalKit's files."""


def check_judge(judge: str) -> None:
    """Check that a judge model answers: VLMEvalKit falls back to exact matching without saying so.

    Raises:
        UniDPOError: it does not answer.
    """
    if judge == EXACT:
        return
    from vlmeval.dataset import build_judge

    try:
        works = build_judge(model=judge, retry=1, verbose=False).working()
    except Exception as error:  # each judge's client raises its own
        raise UniDPOError(f"judge {judge} cannot be used: {error}") from error
    if not works:
        raise UniDPOError(f"judge {judge} does not answer; set OPENAI_API_KEY and OPENAI_API_BASE, or judge by {EXACT}")


def score(loaded: Loaded, predictions: Path, judge: str) -> Score:
    """Score a prediction file in a folder of its own, so that no other judge's leftovers are read.

    Raises:
        UniDPOError: VLMEvalKit's `evaluate` fails or has no number to say.
    """
    folder = predictions.parent / f"judge-{safe_name(judge)}"
    if judge == EXACT:
        shutil.rmtree(folder, ignore_errors=True)  # cheap to do again; a judge model's work is kept
    folder.mkdir(exist_ok=True)
    copy = folder / predictions.name
    shutil.copyfile(predictions, copy)
    try:
        with _own_temporary_names():
            result = loaded.dataset.evaluate(str(copy), model=judge, nproc=4, verbose=False, retry=6, timeout=600)
    except NotImplementedError as error:
        raise UniDPOError("VLMEvalKit has no score for this dataset") from error
    except Exception as error:  # one benchmark's failure is reported and the others go on
        raise UniDPOError(f"VLMEvalKit's evaluate failed: {type(error).__name__}: {error}") from error
    metrics = _flat(result, scale=100 if loaded.dataset.TYPE == "MCQ" else 1)
    metric, value = _headline(loaded.dataset.dataset_name, metrics)
    asks_judge = loaded.dataset.TYPE in ("MCQ", "Y/N")
    outcomes = read_outcomes(loaded.dataset, copy, judge, value)
    return Score(metric, value, metrics, judge if asks_judge else EXACT, outcomes)


def _flat(result: Any, scale: int) -> dict[str, float]:
    """VLMEvalKit's dict or table as names and numbers; `scale` makes percentages of shares."""
    import pandas as pd

    if isinstance(result, Mapping):
        result = pd.DataFrame({key: [value] for key, value in result.items()})
    if not isinstance(result, pd.DataFrame) or not len(result):
        raise UniDPOError("VLMEvalKit returned no score")
    labels = result["split"].astype(str) if "split" in result else ["none"] * len(result)
    flat: dict[str, float] = {}
    for label, (_, row) in sorted(zip(labels, result.iterrows(), strict=True), key=lambda pair: pair[0]):
        for column, value in row.items():
            number = pd.to_numeric(value, errors="coerce")
            if column != "split" and pd.notna(number):
                flat[str(column) if label in ("none", "Overall") else f"{label}: {column}"] = scale * float(number)
    return flat


def _headline(name: str, metrics: Mapping[str, float]) -> tuple[str, float]:
    """The number that stands for a benchmark in a table."""
    if name == "MME":
        return "perception + reasoning", metrics["perception"] + metrics["reasoning"]
    splits = [f"{split}: Overall" for split in ("test", "validation", "val", "dev")]
    for metric in ("Final Score Norm", "Overall", *splits, "acc", "score"):
        if metric in metrics:
            return ("F1" if name == "POPE" else metric), metrics[metric]
    if not metrics:
        raise UniDPOError("VLMEvalKit returned no number")
    return next(iter(metrics.items()))


@contextmanager
def _own_temporary_names() -> Iterator[None]:
    """Keep runs apart: VLMEvalKit's circular scoring writes `/tmp/<second>.xlsx` and reads it back."""
    from vlmeval.dataset.utils import multiple_choice

    upstream = multiple_choice.timestr
    multiple_choice.timestr = lambda: f"uni-dpo-{secrets.token_hex(8)}"
    try:
        yield
    finally:
        multiple_choice.timestr = upstream
