import json
import math

import numpy as np
import pytest

from uni_dpo.data.calibrate import calibrate, suggest
from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.tables.reading import iter_rows
from uni_dpo.errors import UniDPOError

ROWS = [
    {"id": 1, "judge": "strict", "score_chosen": 3, "score_rejected": 1},
    {"id": 1, "judge": "mild", "score_chosen": 90, "score_rejected": 70},
    {"id": 2, "judge": "strict", "score_chosen": 2, "score_rejected": 1},
    {"id": 2, "judge": "mild", "score_chosen": 80, "score_rejected": 70},
]


def run(tmp_path, rows=ROWS, **options):
    (tmp_path / "in.json").write_text(json.dumps(rows))
    result = calibrate(tmp_path / "in.json", tmp_path / "out.json", **options)
    return result, list(iter_rows(tmp_path / "out.json"))


@pytest.mark.parametrize(
    ("method", "chosen", "rejected"),
    [
        # strict's scores are 1, 1, 2, 3 and mild's 70, 70, 80, 90: the same up to scale, so both give the same
        ("linear", [5, 5, 2.5, 2.5], [0, 0, 0, 0]),
        ("rank", [4.375, 4.375, 3.125, 3.125], [1.25, 1.25, 1.25, 1.25]),
        (
            "zscore",
            [2.5 + 2.5 * 1.25 / 3 / math.sqrt(0.6875)] * 2 + [2.5 + 2.5 * 0.25 / 3 / math.sqrt(0.6875)] * 2,
            [2.5 - 2.5 * 0.75 / 3 / math.sqrt(0.6875)] * 4,
        ),
    ],
)
def test_two_judges_get_one_scale(tmp_path, method, chosen, rejected) -> None:
    result, rows = run(tmp_path, method=method, by="judge")
    assert [row["score_chosen"] for row in rows] == pytest.approx(chosen)
    assert [row["score_rejected"] for row in rows] == pytest.approx(rejected)
    assert [row["raw_score_chosen"] for row in rows] == [3, 90, 2, 80]
    assert result.ranges == {"strict": (1, 3, 4), "mild": (70, 90, 4)}
    assert result.agreement[1] == pytest.approx(1)
    assert result.agreement[0] < 0


def test_without_raters_one_mapping_serves_all(tmp_path) -> None:
    result, rows = run(tmp_path, low=1.0, high=2.0)
    assert rows[1]["score_chosen"] == 2.0
    assert rows[0]["score_rejected"] == 1.0
    assert result.agreement is None


def test_one_and_the_same_score_goes_to_the_middle(tmp_path) -> None:
    _, rows = run(tmp_path, [{"score_chosen": 3, "score_rejected": 3}])
    assert rows[0]["score_chosen"] == 2.5


def test_suggestions_are_what_they_say() -> None:
    eta, tau = suggest(np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.0, 4.0, -1.0]))
    assert 1 / (1 + math.exp(-eta.value * 2.0)) == pytest.approx(0.8)
    assert tau.value == pytest.approx(2.0)
    assert "75%" in tau.reason
    assert suggest(np.array([]), np.array([])) == []


def test_rows_without_scores_are_all_named_and_nothing_is_written(tmp_path) -> None:
    with pytest.raises(PreferenceDataError) as caught:
        run(tmp_path, [*ROWS, {"judge": "mild", "score_chosen": None, "score_rejected": "2"}], by="judge")
    assert [(fault.row, fault.field) for fault in caught.value.faults] == [(4, "score_chosen"), (4, "score_rejected")]
    assert not (tmp_path / "out.json").exists()
    with pytest.raises(UniDPOError, match="the lower one first"):
        run(tmp_path, low=3, high=3)
    with pytest.raises(PreferenceDataError, match="row 0, nobody: no rater"):
        run(tmp_path, by="nobody")


@pytest.mark.parametrize("method", ["linear", "rank", "zscore"])
def test_huge_scores_give_finite_ones_in_their_order(tmp_path, method) -> None:
    """The largest goes to the top and the smallest to the bottom; the two between them are at the middle."""
    rows = [
        {"id": 1, "score_chosen": 3e38, "score_rejected": -3e38},
        {"id": 1, "score_chosen": 1, "score_rejected": 0},
    ]
    result, (first, second) = run(tmp_path, [row | {"judge": "all"} for row in rows], method=method, by="judge")
    new = [first["score_rejected"], second["score_rejected"], second["score_chosen"], first["score_chosen"]]
    expected = {"linear": [0, 2.5, 2.5, 5], "rank": [0.625, 1.875, 3.125, 4.375]}
    spread = 2.5 / 3 * math.sqrt(2)  # the deviation of 1, -1, 0, 0 is 1/√2
    assert new == pytest.approx(expected.get(method, [2.5 - spread, 2.5, 2.5, 2.5 + spread]))
    assert all(map(math.isfinite, result.agreement))
    with pytest.raises(UniDPOError, match="two finite numbers"):
        run(tmp_path, low=-1e308, high=1e308)
    with pytest.raises(PreferenceDataError, match="too large"):
        run(tmp_path, [{"score_chosen": 1e308, "score_rejected": -1e308}])


def test_a_second_calibration_keeps_the_first_scores_and_rows_belong_together_by_any_column(tmp_path) -> None:
    _, once = run(tmp_path, [row | {"images": [f"{row['id']}.png"]} for row in ROWS], by="judge")
    again, rows = run(tmp_path, once, by="judge", unit="images", high=1.0)
    assert [row["raw_score_chosen"] for row in rows] == [3, 90, 2, 80]
    assert again.agreement == pytest.approx((1, 1))
