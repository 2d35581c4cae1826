"""Scoring by VLMEvalKit's own `evaluate`, and what each row contributed."""

import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from uni_dpo.errors import UniDPOError
from uni_dpo.report.statistics import Outcomes
from uni_dpo.vlmeval.load import Loaded
from uni_dpo.vlmeval.table import listed, safe_name

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


_MME_PERCEPTION = "OCR artwork celebrity color count existence landmark position posters scene"
_MME_REASONING = "code_reasoning commonsense_reasoning numerical_calculation text_translation"
_OCR_MATHEMATICS = "Handwritten Mathematical Expression Recognition"


def read_outcomes(dataset: Any, prediction_file: Path, judge: str, headline: float) -> Outcomes | None:
    """Return the outcomes behind a headline score, from the files that VLMEvalKit's `evaluate` left beside its input.

    `None` where the rows do not add up to exactly that score: no interval is better than a wrong one.
    """
    from vlmeval.smp import get_intermediate_file_path, load

    name = dataset.dataset_name
    try:
        if name.startswith("OCRBench"):
            outcomes = _ocrbench(load(str(prediction_file)))
        elif dataset.TYPE == "MCQ":
            outcomes = _mean(load(get_intermediate_file_path(str(prediction_file), f"_{judge}_result")), "hit")
        elif dataset.TYPE == "Y/N":
            frame = load(get_intermediate_file_path(str(prediction_file), "_auxmatch"))
            outcomes = _mme(frame) if name == "MME" else _pope(frame) if name == "POPE" else _mean(frame, "score")
        elif dataset.TYPE == "VQA":
            outcomes = _mean(load(get_intermediate_file_path(str(prediction_file), "_results")), "eval_score")
        else:
            return None
    except (OSError, KeyError, ValueError, TypeError, IndexError):
        return None  # another benchmark, which writes other files
    return outcomes if abs(outcomes.score() - headline) < 1e-6 else None


def _mean(frame: pd.DataFrame, column: str) -> Outcomes:
    frame = frame.assign(index=frame["index"].astype(str)).sort_values("index")
    values = frame[column].to_numpy(dtype="float64").reshape(-1, 1)
    return Outcomes(list(frame["index"]), 100 * values / len(frame), "sum")


def _pope(frame: pd.DataFrame) -> Outcomes:
    right, said = frame["answer"].eq("Yes"), frame["extracted"].eq("Yes")
    weight = 1 + frame["category"].astype(str).str.count(",")  # a row counts once per split that it is in
    parts = np.stack([(case * weight).to_numpy("float64") for case in (right & said, ~right & said, right & ~said)])
    return Outcomes([str(index) for index in frame["index"]], parts.T, "f1")


def _mme(frame: pd.DataFrame) -> Outcomes:
    """Per task, accuracy over questions plus accuracy over images of which both questions are right."""
    frame = frame[frame["category"].isin(f"{_MME_PERCEPTION} {_MME_REASONING}".split(" "))]
    images = frame.groupby(["category", "image_path"], sort=True)["score"]
    both = images.mean() + images.apply(lambda scores: float(scores.iloc[0]) * float(scores.iloc[1]))
    tasks = both.index.get_level_values(0)
    size = both.groupby(level=0).transform("size").to_numpy("float64")
    parts = (100 * both.to_numpy("float64") / size).reshape(-1, 1)
    return Outcomes([repr(key) for key in both.index], np.ascontiguousarray(parts), "sum", list(tasks))


def _ocrbench(frame: pd.DataFrame) -> Outcomes:
    """One point of a thousand per row whose prediction contains an accepted answer."""
    rows = zip(frame["prediction"].astype(str), frame["answer"].astype(str), frame["category"], strict=True)
    parts = np.array([[_contains(*row)] for row in rows], dtype="float64") / 10
    return Outcomes([str(index) for index in frame["index"]], parts, "sum")


def _contains(prediction: str, answers: str, category: str) -> bool:
    def normal(text: str) -> str:
        flat = text.strip().replace("\n", " ")
        return flat.replace(" ", "") if category == _OCR_MATHEMATICS else flat.lower()

    return any(normal(answer) in normal(prediction) for answer in listed(answers))
