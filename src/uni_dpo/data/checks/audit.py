"""What a pair file is like beyond its faults: duplicates, length bias, scores, margins, and the weights they give."""

import hashlib
import math
import re
from array import array
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from uni_dpo.data.checks.rows import CheckedRow
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.tables.reading import Row
from uni_dpo.storage.writing import finite

_EXAMPLES = 5
JUDGE_COLUMNS = ("judge", "rater", "scorer", "annotator", "score_source", "source")
"""Columns that may say who gave a row's scores."""
_JUDGES = 50
_TURN_MARKS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|begin_of_text|end|user|assistant)\|>|</s>|<(?:start|end)_of_turn>"
)
"""What the templates of Qwen, Llama, Phi, Mistral and Gemma put around a turn."""
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


@dataclass(frozen=True)
class Spread:
    """The distribution of one number over the rows: mean, and quantiles at `QUANTILES`."""

    count: int
    mean: float
    quantiles: tuple[float, ...]

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Of any numbers; of none, NaN throughout."""
        data = np.asarray(values if isinstance(values, array) else list(values), dtype=np.float64)
        if not data.size:
            return cls(0, math.nan, (math.nan,) * len(QUANTILES))
        return cls(data.size, float(data.mean()), tuple(float(q) for q in np.quantile(data, QUANTILES)))


@dataclass
class Repeats:
    """Rows that repeat, or contradict, an earlier row: how many, and a few as (earlier row, row)."""

    count: int = 0
    examples: list[tuple[int, int]] = field(default_factory=list)

    def add(self, earlier: int, row: int) -> None:
        """Count one more."""
        self.count += 1
        if len(self.examples) < _EXAMPLES:
            self.examples.append((earlier, row))


@dataclass
class RowList:
    """Rows that share something: how many, and the first few."""

    count: int = 0
    first: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        """Count one more."""
        self.count += 1
        if len(self.first) < _EXAMPLES:
            self.first.append(row)

    def __str__(self) -> str:
        """Name them as a message does."""
        more = ", …" if self.count > len(self.first) else ""
        return f"row{'s' if self.count > 1 else ''} {', '.join(map(str, self.first))}{more}"


@dataclass(frozen=True)
class Audit:
    """What `data check` and `data stats` report of the usable rows.

    Attributes:
        pairs: how many there were.
        images: images, counted with repetition.
        distinct_images: distinct image paths.
        duplicates: the same question, images and answers as an earlier row.
        contradictions: the same with the answers swapped.
        identical: pairs whose two answers are the same.
        ended: pairs with a text that holds what templates end or begin a turn with.
        inverted: scored pairs whose chosen score is lower.
        chosen_characters: length of the chosen answer.
        rejected_characters: likewise.
        length_bias: mean of chosen − rejected length, in characters.
        longer_is_chosen: how often "the longer answer is the chosen one" is right; a tie is half right.
        score_chosen: the scores of the chosen answers.
        score_rejected: likewise.
        margins: chosen − rejected score.
        tied_scores: share of the scored pairs with equal scores.
        inverted_scores: share of the scored pairs whose chosen score is lower.
        judges: lowest score, highest score and rows of everyone who is named in `judge_column`.
        judge_column: the column that names who gave the scores; empty where there is none.
        two_scales: share of the pairs on the lower one of two scales, and its upper end; 0 where one scale is seen.
        above_tau_good: share of the scored pairs with chosen score ≥ τ_good.
        quality_weights: σ(η · margin), the w_qual that training will use.
        qual_eta: the η that was asked for.
        tau_good: the τ_good that was asked for.
        histogram: edges and counts of the margins, for the figure.
        score_histograms: edges and the counts of chosen and rejected scores.
    """

    pairs: int
    images: int
    distinct_images: int
    duplicates: Repeats
    contradictions: Repeats
    identical: RowList
    ended: RowList
    inverted: RowList
    chosen_characters: Spread
    rejected_characters: Spread
    length_bias: float
    longer_is_chosen: float
    score_chosen: Spread
    score_rejected: Spread
    margins: Spread
    tied_scores: float
    inverted_scores: float
    judges: dict[str, tuple[float, float, int]]
    judge_column: str
    two_scales: tuple[float, float]
    above_tau_good: float
    quality_weights: Spread
    qual_eta: float
    tau_good: float
    histogram: tuple[list[float], list[int]]
    score_histograms: tuple[list[float], list[int], list[int]]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`; NaN becomes None."""
        found: dict[str, Any] = finite(asdict(self))
        return found


class Auditor:
    """Adds up an `Audit` row by row: about 200 bytes per row stay in memory."""

    def __init__(self, *, qual_eta: float = 0.7, tau_good: float = 2.5) -> None:
        self._qual_eta = qual_eta
        self._tau_good = tau_good
        self._rows = 0
        self._seen: dict[int, int] = {}
        self._paths: set[int] = set()
        self._images = 0
        self._lengths = array("l"), array("l")
        self._scores = array("d"), array("d")
        self._duplicates = Repeats()
        self._contradictions = Repeats()
        self._identical, self._ended, self._inverted = RowList(), RowList(), RowList()
        self._judges: dict[str, tuple[float, float, int]] = {}
        self._judge_column = ""

    def add(self, row: CheckedRow) -> None:
        """Take in a row; rows with faults are left out."""
        position = self._rows
        self._rows += 1
        for pair in () if row.faults else row.pairs:
            self.add_pair(pair, position)
            self._add_judge(row.row or {}, pair)

    def add_pair(self, pair: PreferencePair, position: int) -> None:
        """Take in a pair that stands at `position`."""
        key, swapped = _keys(pair)
        if key in self._seen:
            self._duplicates.add(self._seen[key], position)
        elif swapped in self._seen and swapped != key:
            self._contradictions.add(self._seen[swapped], position)
        self._seen.setdefault(key, position)
        images = pair.images + pair.rejected_images
        if pair.chosen == pair.rejected and pair.rejected_images in ((), pair.images):
            self._identical.add(position)
        if any(_TURN_MARKS.search(text) for text in (pair.instruction, pair.chosen, pair.rejected)):
            self._ended.add(position)
        self._images += len(images)
        self._paths.update(hash(image) for image in images if isinstance(image, str))
        self._lengths[0].append(len(pair.chosen))
        self._lengths[1].append(len(pair.rejected))
        if pair.score_chosen is not None and pair.score_rejected is not None:
            self._scores[0].append(pair.score_chosen)
            self._scores[1].append(pair.score_rejected)
            if pair.score_chosen < pair.score_rejected:
                self._inverted.add(position)

    def _add_judge(self, row: Row, pair: PreferencePair) -> None:
        column = self._judge_column or next((name for name in JUDGE_COLUMNS if isinstance(row.get(name), str)), "")
        name = row.get(column)
        if not isinstance(name, str) or pair.score_chosen is None or pair.score_rejected is None:
            return
        self._judge_column = column
        if name in self._judges or len(self._judges) < _JUDGES:
            low, high, count = self._judges.get(name, (math.inf, -math.inf, 0))
            scores = pair.score_chosen, pair.score_rejected
            self._judges[name] = min(low, *scores), max(high, *scores), count + 1

    def result(self) -> Audit:
        """Return the audit of what was added."""
        chosen, rejected = (np.asarray(values, dtype=np.float64) for values in self._scores)
        margins = chosen - rejected
        longer = np.asarray(self._lengths[0], dtype=np.float64) - np.asarray(self._lengths[1], dtype=np.float64)
        edges, margin_edges = _edges(np.concatenate([chosen, rejected])), _edges(margins)
        counts = np.histogram(margins, bins=margin_edges)[0] if margins.size else np.zeros(0)
        return Audit(
            pairs=len(self._lengths[0]),
            images=self._images,
            distinct_images=len(self._paths),
            duplicates=self._duplicates,
            contradictions=self._contradictions,
            identical=self._identical,
            ended=self._ended,
            inverted=self._inverted,
            chosen_characters=Spread.of(self._lengths[0]),
            rejected_characters=Spread.of(self._lengths[1]),
            length_bias=_mean(longer),
            longer_is_chosen=_mean(np.where(longer == 0, 0.5, longer > 0)),
            score_chosen=Spread.of(self._scores[0]),
            score_rejected=Spread.of(self._scores[1]),
            margins=Spread.of(margins),
            tied_scores=_mean(margins == 0),
            inverted_scores=_mean(margins < 0),
            judges=self._judges,
            judge_column=self._judge_column,
            two_scales=_two_scales(chosen, rejected),
            above_tau_good=_mean(chosen >= self._tau_good),
            quality_weights=Spread.of(quality_weights(margins, self._qual_eta)),
            qual_eta=self._qual_eta,
            tau_good=self._tau_good,
            histogram=(margin_edges.tolist(), counts.astype(int).tolist()),
            score_histograms=(
                edges.tolist(),
                *(np.histogram(values, bins=edges)[0].tolist() if chosen.size else [] for values in (chosen, rejected)),
            ),
        )


def quality_weights(margins: np.ndarray, qual_eta: float) -> np.ndarray:
    """Return w_qual = σ(η (S_w − S_l)) in float64, without overflow."""
    return np.exp(-np.logaddexp(0.0, -qual_eta * margins))


def _edges(values: np.ndarray) -> np.ndarray:
    """Edges of 20 bins of equal width, of fewer where so many numbers do not fit between the ends."""
    if not values.size:
        return np.zeros(1)
    low, high = values.min(), values.max()
    if low == high:
        low, high = low - max(0.5, abs(low) * 1e-12), high + max(0.5, abs(high) * 1e-12)
    return np.unique(np.linspace(low, high, 21))


def _two_scales(chosen: np.ndarray, rejected: np.ndarray) -> tuple[float, float]:
    """The share of pairs up to 1, 5 or 10 in a file whose other pairs lie far above, with nothing in between."""
    high, low = np.maximum(chosen, rejected), np.minimum(chosen, rejected)
    fractions = (high % 1 != 0) | (low % 1 != 0)
    for top, above in ((1.0, 2.0), (5.0, 12.5), (10.0, 25.0)):
        lower = (low >= 0) & (high <= top) & (fractions if top == 1 else high > 0)
        share = _mean(lower)
        if share >= 0.05 and _mean(high > above) >= 0.05 and _mean((high > top) & (high <= above)) < 0.02:
            return share, top
    return 0.0, 0.0


def _keys(pair: PreferencePair) -> tuple[int, int]:
    """A number for the pair, and the number of the pair with its answers swapped."""
    question = "\0".join((pair.system, repr(pair.history), pair.instruction, repr(pair.videos)))
    start = hashlib.blake2b(question.encode(errors="surrogatepass"), digest_size=8)
    chosen = (repr(pair.images), pair.chosen)
    rejected = (repr(pair.rejected_images or pair.images), pair.rejected)
    numbers = []
    for sides in ((*chosen, *rejected), (*rejected, *chosen)):
        digest = start.copy()
        digest.update("\0".join(("", *sides)).encode(errors="surrogatepass"))
        numbers.append(int.from_bytes(digest.digest()))
    return numbers[0], numbers[1]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan
