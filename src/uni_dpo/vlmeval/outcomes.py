"""What each row contributed to a benchmark's score, and how sure a difference of two models is: a paired bootstrap."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from uni_dpo.vlmeval.table import accepted_answers

if TYPE_CHECKING:
    import pandas as pd


REPEATS = 2000
_AT_ONCE = 4_000_000
"""Random counts held in memory at a time."""


@dataclass(frozen=True)
class Outcomes:
    """A benchmark's score as a function of sums over units that are drawn together.

    A unit is a row, or the rows that are scored as one (MME's two questions about an image).
    """

    units: Sequence[str]
    parts: Any
    """Float64 array, units × parts. Each part is summed over the units."""
    form: str
    """`sum`: the score is the sum of the one part. `f1`: parts are true positives, false positives, false negatives."""
    strata: Sequence[str] | None = None
    """Units are redrawn within their stratum only; within all of them when `None`."""

    def score(self) -> float:
        """Return the benchmark's score."""
        return float(_combine(self.parts.sum(axis=0, keepdims=True), self.form)[0])


def difference_interval(
    baseline: Outcomes, other: Outcomes, *, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Return the percentile interval of `other` minus `baseline`.

    Both scores are computed on the same redrawn units, so that what is hard for both cancels
    (Efron and Tibshirani 1993, chapter 13).

    Args:
        baseline: outcomes of one model.
        other: outcomes of the other on the same units.
        seed: of the draws; the same seed gives the same interval.
        level: share of the resampled differences that lie inside.

    Raises:
        ValueError: the two were not asked the same.
    """
    import numpy as np

    if list(baseline.units) != list(other.units) or baseline.form != other.form:
        raise ValueError("the two models were not scored on the same units")
    generator = np.random.default_rng(seed)
    strata = np.asarray(baseline.strata if baseline.strata is not None else [""] * len(baseline.units))
    both = np.concatenate([baseline.parts, other.parts], axis=1)
    sums = np.zeros((REPEATS, both.shape[1]))
    for stratum in sorted(set(strata.tolist())):
        sums += _resampled_sums(both[strata == stratum], generator)
    width = baseline.parts.shape[1]
    differences = _combine(sums[:, width:], other.form) - _combine(sums[:, :width], baseline.form)
    tail = 100 * (1 - level) / 2
    low, high = np.percentile(differences, [tail, 100 - tail])
    return float(low), float(high)


def _resampled_sums(parts: Any, generator: Any) -> Any:
    import numpy as np

    count = len(parts)
    step = max(1, _AT_ONCE // count)
    drawn = [
        generator.multinomial(count, np.full(count, 1 / count), size=min(step, REPEATS - start)) @ parts
        for start in range(0, REPEATS, step)
    ]
    return np.concatenate(drawn)


def _combine(sums: Any, form: str) -> Any:
    import numpy as np

    if form == "sum":
        return sums[:, 0]
    true_positive, false_positive, false_negative = sums.T
    denominator = 2 * true_positive + false_positive + false_negative
    return 100 * np.divide(2 * true_positive, denominator, out=np.zeros_like(denominator), where=denominator > 0)


_MME_PERCEPTION = "OCR artwork celebrity color count existence landmark position posters scene"
_MME_REASONING = "code_reasoning commonsense_reasoning numerical_calculation text_translation"
_OCR_MATHEMATICS = "Handwritten Mathematical Expression Recognition"


def read_outcomes(dataset: Any, prediction_file: Path, judge: str, headline: float) -> Outcomes | None:
    """Return the outcomes behind a headline score.

    Args:
        dataset: VLMEvalKit's dataset, after `evaluate`.
        prediction_file: what it evaluated; its own files lie beside.
        judge: as given to `evaluate`.
        headline: the score it returned.

    Returns:
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
            outcomes = {"MME": _mme, "POPE": _pope}.get(name, _yes_no)(frame)
        elif dataset.TYPE == "VQA":
            outcomes = _mean(load(get_intermediate_file_path(str(prediction_file), "_results")), "eval_score")
        else:
            return None
    except (OSError, KeyError, ValueError, TypeError, IndexError):
        return None  # another benchmark, which writes other files
    return outcomes if abs(outcomes.score() - headline) < 1e-6 else None


def _mean(frame: "pd.DataFrame", column: str) -> Outcomes:
    frame = frame.assign(index=frame["index"].astype(str)).sort_values("index")
    values = frame[column].to_numpy(dtype="float64").reshape(-1, 1)
    return Outcomes(list(frame["index"]), 100 * values / len(frame), "sum")


def _yes_no(frame: "pd.DataFrame") -> Outcomes:
    return _mean(frame, "score")


def _pope(frame: "pd.DataFrame") -> Outcomes:
    import numpy as np

    right, said = frame["answer"].eq("Yes"), frame["extracted"].eq("Yes")
    weight = 1 + frame["category"].astype(str).str.count(",")  # a row counts once per split that it is in
    parts = np.stack([(case * weight).to_numpy("float64") for case in (right & said, ~right & said, right & ~said)])
    return Outcomes([str(index) for index in frame["index"]], parts.T, "f1")


def _mme(frame: "pd.DataFrame") -> Outcomes:
    """Per task, accuracy over questions plus accuracy over images of which both questions are right."""
    import numpy as np

    frame = frame[frame["category"].isin(f"{_MME_PERCEPTION} {_MME_REASONING}".split(" "))]
    images = frame.groupby(["category", "image_path"], sort=True)["score"]
    both = images.mean() + images.apply(lambda scores: float(scores.iloc[0]) * float(scores.iloc[1]))
    tasks = both.index.get_level_values(0)
    size = both.groupby(level=0).transform("size").to_numpy("float64")
    parts = (100 * both.to_numpy("float64") / size).reshape(-1, 1)
    return Outcomes([repr(key) for key in both.index], np.ascontiguousarray(parts), "sum", list(tasks))


def _ocrbench(frame: "pd.DataFrame") -> Outcomes:
    """One point of a thousand per row whose prediction contains an accepted answer."""
    import numpy as np

    rows = zip(frame["prediction"], frame["answer"], frame["category"], strict=True)
    hits = [_contains(str(prediction), str(answers), category) for prediction, answers, category in rows]
    parts = np.array(hits, dtype="float64").reshape(-1, 1) / 10
    return Outcomes([str(index) for index in frame["index"]], parts, "sum")


def _contains(prediction: str, answers: str, category: str) -> bool:
    def normal(text: str) -> str:
        flat = text.strip().replace("\n", " ")
        return flat.replace(" ", "") if category == _OCR_MATHEMATICS else flat.lower()

    return any(normal(answer) in normal(prediction) for answer in accepted_answers(answers))
