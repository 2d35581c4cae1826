"""What experiment trackers are given: the same names, read back from TensorBoard's own files and Trackio's store."""

from pathlib import Path
from typing import Any

import pytest

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


def test_other_trackers_are_given_the_same_names() -> None:
    from transformers.integrations import integration_utils

    given = {"loss": 1.0, "eval_loss": 2.0, **dict.fromkeys(OURS, 0.5), "eval_uni_dpo/w_perf": 0.5}
    renamed = integration_utils.rewrite_logs(given)
    assert set(renamed) == {"train/loss", "eval/loss", "eval/uni_dpo/w_perf"} | {f"train/{name}" for name in OURS}
