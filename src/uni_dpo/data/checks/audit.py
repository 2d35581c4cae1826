"""What a pair file is like beyond its faults: duplicates, length bias, scores, margins, and the weights they give."""

import hashlib
import math
import re
from array import array
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from uni_dpo.data.checks.rows import CheckedRow
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.tables.reading import Row

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


@dataclass
class Audit:
    """What `data check` and `data stats` report of the usable rows.

    Attributes:
        qual_eta, tau_good: the η and the τ_good that were asked for.
        pairs: how many there were.
        images: images, counted with repetition.
        distinct_images: distinct image paths.
        duplicates: the same question, images and answers as an earlier row.
        contradictions: the same with the answers swapped.
        identical: pairs whose two answers are the same.
        ended: pairs with a text that holds what templates end or begin a turn with.
        inverted: scored pairs whose chosen score is lower.
        chosen_characters, rejected_characters: lengths of the answers.
        length_bias: mean of chosen − rejected length, in characters.
        longer_is_chosen: how often "the longer answer is the chosen one" is right; a tie is half right.
        score_chosen, score_rejected: the scores of the answers.
        margins: chosen − rejected score.
        tied_scores, inverted_scores: shares of the scored pairs with equal scores, and with a lower chosen score.
        judges: lowest score, highest score and rows of everyone who is named in `judge_column`.
        judge_column: the column that names who gave the scores; empty where there is none.
        two_scales: share of the pairs on the lower one of two scales, and its upper end; 0 where one scale is seen.
        above_tau_good: share of the scored pairs with chosen score ≥ τ_good.
        quality_weights: σ(η · margin), the w_qual that training will use.
        histogram: edges and counts of the margins, for the figure.
        score_histograms: edges and the counts of chosen and rejected scores.
    """

    qual_eta: float
    tau_good: float
    pairs: int = 0
    images: int = 0
    distinct_images: int = 0
    duplicates: Repeats = field(default_factory=Repeats)
    contradictions: Repeats = field(default_factory=Repeats)
    identical: RowList = field(default_factory=RowList)
    ended: RowList = field(default_factory=RowList)
    inverted: RowList = field(default_factory=RowList)
    chosen_characters: Spread = field(init=False)
    rejected_characters: Spread = field(init=False)
    length_bias: float = field(init=False)
    longer_is_chosen: float = field(init=False)
    score_chosen: Spread = field(init=False)
    score_rejected: Spread = field(init=False)
    margins: Spread = field(init=False)
    tied_scores: float = field(init=False)
    inverted_scores: float = field(init=False)
    judges: dict[str, tuple[float, float, int]] = field(default_factory=dict)
    judge_column: str = ""
    two_scales: tuple[float, float] = field(init=False)
    above_tau_good: float = field(init=False)
    quality_weights: Spread = field(init=False)
    histogram: tuple[list[float], list[int]] = field(init=False)
    score_histograms: tuple[list[float], list[int], list[int]] = field(init=False)


class Auditor:
    """Adds up an `Audit` row by row: about 200 bytes per row stay in memory."""

    def __init__(self, qual_eta: float = 0.7, tau_good: float = 2.5) -> None:
        self._audit = Audit(qual_eta, tau_good)
        self._rows = 0
        self._seen: dict[int, int] = {}
        self._paths: set[int] = set()
        self._lengths = array("l"), array("l")
        self._scores = array("d"), array("d")

    def add(self, row: CheckedRow) -> None:
        """Take in a row; rows with faults are left out."""
        for pair in () if row.faults else row.pairs:
            self._add_pair(pair)
            self._add_judge(row.row or {}, pair)
        self._rows += 1

    def _add_pair(self, pair: PreferencePair) -> None:
        audit, position = self._audit, self._rows
        key, swapped = _keys(pair)
        if key in self._seen:
            audit.duplicates.add(self._seen[key], position)
        elif swapped in self._seen and swapped != key:
            audit.contradictions.add(self._seen[swapped], position)
        self._seen.setdefault(key, position)
        images = pair.images + pair.rejected_images
        if pair.chosen == pair.rejected and pair.rejected_images in ((), pair.images):
            audit.identical.add(position)
        if any(_TURN_MARKS.search(text) for text in (pair.instruction, pair.chosen, pair.rejected)):
            audit.ended.add(position)
        audit.pairs += 1
        audit.images += len(images)
        self._paths.update(hash(image) for image in images if isinstance(image, str))
        self._lengths[0].append(len(pair.chosen))
        self._lengths[1].append(len(pair.rejected))
        if pair.score_chosen is not None and pair.score_rejected is not None:
            self._scores[0].append(pair.score_chosen)
            self._scores[1].append(pair.score_rejected)
            if pair.score_chosen < pair.score_rejected:
                audit.inverted.add(position)

    def _add_judge(self, row: Row, pair: PreferencePair) -> None:
        audit = self._audit
        column = audit.judge_column or next((name for name in JUDGE_COLUMNS if isinstance(row.get(name), str)), "")
        name = row.get(column)
        if not isinstance(name, str) or pair.score_chosen is None or pair.score_rejected is None:
            return
        audit.judge_column = column
        if name in audit.judges or len(audit.judges) < _JUDGES:
            low, high, count = audit.judges.get(name, (math.inf, -math.inf, 0))
            scores = pair.score_chosen, pair.score_rejected
            audit.judges[name] = min(low, *scores), max(high, *scores), count + 1

    def result(self) -> Audit:
        """Return the audit of what was added."""
        audit = self._audit
        audit.distinct_images = len(self._paths)
        audit.chosen_characters, audit.rejected_characters = map(Spread.of, self._lengths)
        audit.score_chosen, audit.score_rejected = map(Spread.of, self._scores)
        longer = np.asarray(self._lengths[0], dtype=np.float64) - np.asarray(self._lengths[1], dtype=np.float64)
        audit.length_bias = _mean(longer)
        audit.longer_is_chosen = _mean(np.where(longer == 0, 0.5, longer > 0))
        chosen, rejected = (np.asarray(values, dtype=np.float64) for values in self._scores)
        audit.two_scales = _two_scales(chosen, rejected)
        audit.above_tau_good = _mean(chosen >= audit.tau_good)
        margins = chosen - rejected
        audit.margins = Spread.of(margins)
        audit.tied_scores, audit.inverted_scores = _mean(margins == 0), _mean(margins < 0)
        audit.quality_weights = Spread.of(quality_weights(margins, audit.qual_eta))
        edges = _edges(margins)
        audit.histogram = edges.tolist(), _counts(margins, edges)
        edges = _edges(np.concatenate([chosen, rejected]))
        audit.score_histograms = edges.tolist(), _counts(chosen, edges), _counts(rejected, edges)
        return audit


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


def _counts(values: np.ndarray, edges: np.ndarray) -> list[int]:
    return np.histogram(values, bins=edges)[0].tolist() if values.size else []


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
    swapped = start.copy()
    for digest, sides in ((start, chosen + rejected), (swapped, rejected + chosen)):
        digest.update("\0".join(("", *sides)).encode(errors="surrogatepass"))
    return int.from_bytes(start.digest()), int.from_bytes(swapped.digest())


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan
