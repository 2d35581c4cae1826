"""What experiment trackers are given: the same names, read back from TensorBoard's own files and Trackio's store."""

from pathlib import Path
from typing import Any

import pytest

from uni_dpo.ledger.reading import read_ledger
from uni_dpo.monitor.pairs import HISTOGRAMS

OURS = {"uni_dpo/w_qual", "uni_dpo/w_perf", "uni_dpo/nll_active", "uni_dpo/score_margin"}


def train_names(log: list[dict[str, Any]]) -> set[str]:
    """The metrics of a logging step, as every tracker of transformers' is to call them."""
    line = next(line for line in log if "loss" in line)
    return {f"train/{name}" for name in line if name not in ("step", "epoch")}


def test_tensorboard_gets_every_metric_of_the_log_by_its_name(train: Any, tmp_path: Path) -> None:
    reading = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the package tensorboard"
    )
    log = train(report_to="tensorboard", logging_dir=str(tmp_path / "events"))
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = reading.EventAccumulator(str(file.parent))
    events.Reload()
    names = train_names(log)
    assert {f"train/{name}" for name in OURS} <= names <= set(events.Tags()["scalars"])
    for name in names:
        logged = [line[name.removeprefix("train/")] for line in log if "loss" in line]
        assert [event.value for event in events.Scalars(name)] == pytest.approx(logged, rel=1e-5)
    rows = read_ledger(tmp_path / "out").to_pylist()
    assert {*events.Tags()["histograms"]} == {f"train/uni_dpo/pairs/{name}" for name in HISTOGRAMS}
    for event in events.Histograms("train/uni_dpo/pairs/reward_margin"):
        seen = [row["policy_margin"] - row["reference_margin"] for row in rows if row["step"] == event.step]
        shown = event.histogram_value
        assert (shown.num, shown.min, shown.max) == (
            len(seen), pytest.approx(min(seen), abs=1e-5), pytest.approx(max(seen), abs=1e-5)
        )  # fmt: skip


def test_other_trackers_are_given_the_same_names() -> None:
    from transformers.integrations import integration_utils

    given = {"loss": 1.0, "eval_loss": 2.0, **dict.fromkeys(OURS, 0.5), "eval_uni_dpo/w_perf": 0.5}
    renamed = integration_utils.rewrite_logs(given)
    assert set(renamed) == {"train/loss", "eval/loss", "eval/uni_dpo/w_perf"} | {f"train/{name}" for name in OURS}
