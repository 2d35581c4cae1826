"""The figures of an evaluation's page are those that lm-eval and lmms-eval give for the same predictions.

    pip install lm-eval lmms-eval sacrebleu        # in an environment of its own

Without these packages the tests are skipped; `test_page.py` and `tests/report/test_statistics.py` hold the same figures
to scipy and to numbers worked out by hand.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.vlmeval.test_page import data_of, rows, score

from uni_dpo.vlmeval.page import write_evaluation_page
from uni_dpo.vlmeval.results import Line, Results

COUNT = 120


@pytest.fixture(scope="module", params=[0, 1, 2], ids=lambda seed: f"seed {seed}")
def predicted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Any, Any]:
    """What two models got right of the same rows, and the page that says so."""
    draw = np.random.default_rng(request.param)
    before = draw.integers(0, 2, COUNT).tolist()
    after = [int(hit or draw.random() < 0.2) if draw.random() < 0.9 else 1 - hit for hit in before]
    lines = [
        Line(model, "digits", COUNT, 0, None, "own", "instruct", score=score(hits))
        for model, hits in (("before", before), ("after", after))
    ]
    said = {
        (model, "digits"): rows("".join("BA"[hit] for hit in hits))
        for model, hits in (("before", before), ("after", after))
    }
    page = write_evaluation_page(Results(lines, "vlmeval"), said, tmp_path_factory.mktemp("page"))
    return before, after, {row["model"]: row for row in data_of(Path(page))["evaluation"]["rows"]}


def test_the_interval_of_a_score_is_from_lm_evals_standard_error(predicted: tuple[Any, Any, Any]) -> None:
    metrics = pytest.importorskip("lm_eval.api.metrics", reason="needs lm-eval: pip install lm-eval")
    before, after, page = predicted
    for model, hits in (("before", before), ("after", after)):
        row, theirs = page[model], 100 * metrics.mean_stderr(hits)
        assert row["score"] == pytest.approx(100 * sum(hits) / COUNT)
        assert row["interval"][1] - row["score"] == pytest.approx(1.959963984540054 * theirs, rel=1e-9)
        assert row["score"] - row["interval"][0] == pytest.approx(1.959963984540054 * theirs, rel=1e-9)


def test_the_difference_of_two_models_is_lmms_evals_paired_t_test(predicted: tuple[Any, Any, Any]) -> None:
    metrics = pytest.importorskip("lmms_eval.api.metrics", reason="needs lmms-eval: pip install lmms-eval")
    before, after, page = predicted
    theirs = metrics.paired_ttest([100.0 * hit for hit in after], [100.0 * hit for hit in before])
    row = page["after"]
    assert row["difference"] == pytest.approx(theirs["mean_diff"], rel=1e-9)
    assert row["difference_interval"] == pytest.approx([theirs["ci_lower"], theirs["ci_upper"]], rel=1e-9)
    assert row["p"] == pytest.approx(theirs["p_value"], rel=1e-6)


def test_models_that_answer_alike_have_lmms_evals_p() -> None:
    metrics = pytest.importorskip("lmms_eval.api.metrics", reason="needs lmms-eval: pip install lmms-eval")
    from uni_dpo.report.statistics import paired_difference

    for first, second in (([1.0, 0.0, 1.0], [1.0, 0.0, 1.0]), ([0.0, 0.0], [1.0, 1.0])):
        assert paired_difference(first, second).p == metrics.paired_ttest(second, first)["p_value"]
