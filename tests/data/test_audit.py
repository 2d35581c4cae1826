import math
from pathlib import Path

import numpy as np
import pytest

from uni_dpo.data.checks.audit import Auditor, Spread, quality_weights
from uni_dpo.data.checks.rows import CheckedRow
from uni_dpo.data.faults import Fault
from uni_dpo.data.pair import PreferencePair

PAIRS = [
    PreferencePair("q1", "aaaa", "bb", 4.0, 1.0, ("1.png",)),
    PreferencePair("q1", "aaaa", "bb", 4.0, 1.0, ("1.png",)),
    PreferencePair("q1", "bb", "aaaa", 3.0, 3.0, ("1.png",)),
    PreferencePair("q1", "aaaa", "bb", 2.0, 5.0, ("2.png",)),
    PreferencePair("q2", "ab", "cd", None, None, ()),
]


def audit(pairs, **options):
    auditor = Auditor(**options)
    for index, pair in enumerate(pairs):
        auditor.add(CheckedRow(Path("d.json"), index, {}, [pair]))
    return auditor.result()


def test_by_hand() -> None:
    found = audit(PAIRS, qual_eta=0.5, tau_good=3.0)
    assert (found.pairs, found.images, found.distinct_images) == (5, 4, 2)
    assert (found.duplicates.count, found.duplicates.examples) == (1, [(0, 1)])
    assert (found.contradictions.count, found.contradictions.examples) == (1, [(0, 2)])
    assert found.length_bias == pytest.approx((2 + 2 - 2 + 2 + 0) / 5)
    assert found.longer_is_chosen == pytest.approx((1 + 1 + 0 + 1 + 0.5) / 5)
    assert found.score_chosen.mean == pytest.approx(13 / 4)
    assert found.margins.quantiles == pytest.approx((-3, -2.55, -0.75, 1.5, 3, 3, 3))
    assert (found.tied_scores, found.inverted_scores, found.above_tau_good) == (0.25, 0.25, 0.75)
    sigmoid = [1 / (1 + math.exp(-0.5 * margin)) for margin in (3, 3, 0, -3)]
    assert found.quality_weights.mean == pytest.approx(sum(sigmoid) / 4)
    assert sum(found.histogram[1]) == 4
    assert [sum(counts) for counts in found.score_histograms[1:]] == [4, 4]


def test_rows_with_faults_are_left_out_and_keep_their_numbers() -> None:
    auditor = Auditor()
    auditor.add(CheckedRow(Path("d"), 0, {}, [PAIRS[0]], [Fault("x", "x", "x", "x")]))
    auditor.add(CheckedRow(Path("d"), 1, {}, [PAIRS[0]]))
    auditor.add(CheckedRow(Path("d"), 2, {}, [PAIRS[1]]))
    assert auditor.result().duplicates.examples == [(1, 2)]


def test_the_same_texts_under_another_system_prompt_are_no_duplicate() -> None:
    found = audit(
        [
            PreferencePair("q", "a", "b"),
            PreferencePair("q", "a", "b", system="s"),
            PreferencePair("q", "a", "b", history=(("x", "y"),)),
        ]
    )
    assert (found.duplicates.count, found.contradictions.count) == (0, 0)


def test_identical_answers_are_counted_and_contradict_nothing() -> None:
    found = audit([PreferencePair("q", "a", "a"), PreferencePair("q", "a", "a"), PreferencePair("q", "a", "b")])
    assert (found.identical.count, found.duplicates.count, found.contradictions.count) == (2, 1, 0)


def test_marks_of_chat_templates_are_counted_by_row() -> None:
    texts = ["A cat.<|im_end|>", "<|im_start|>user", "a</s>", "<end_of_turn>", "a < b | c > d", "<s>", "im_end"]
    found = audit([PreferencePair("q", text, "b") for text in texts])
    assert (found.ended.count, found.ended.first) == (4, [0, 1, 2, 3])


def test_nothing_at_all_is_no_error() -> None:
    empty = audit([])
    assert empty.pairs == 0
    assert math.isnan(empty.margins.mean)
    assert math.isnan(Spread.of([]).mean)


def test_quality_weights_do_not_overflow() -> None:
    weights = quality_weights(np.array([-1e4, 0.0, 1e4]), 10.0)
    assert weights.tolist() == [0.0, 0.5, 1.0]
