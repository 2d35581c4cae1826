"""What trackers get of a real run: the names and numbers of its log, and distributions over its pairs."""

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from uni_dpo.ledger.reading import read_ledger
from uni_dpo.trl import UniDPOTrainer

Settings = Callable[..., Any]
Rows = list[dict[str, Any]]
DISTRIBUTIONS = {f"train/uni_dpo/pairs/{name}" for name in ("w_qual", "w_perf", "policy_margin", "reward_margin")}
UNSHOWN = ("epoch", "step")


def tracked_name(metric: str) -> str:
    """What transformers makes of a metric's name for trackers."""
    return f"eval/{metric[5:]}" if metric.startswith("eval_") else f"train/{metric}"


def test_tensorboard_gets_the_log_and_distributions(
    tiny_text: Path, text_rows: Rows, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard: pip install tensorboard"
    )
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    config = settings(report_to="tensorboard", eval_strategy="epoch", num_train_epochs=2)
    data = Dataset.from_list(text_rows)
    trainer = UniDPOTrainer(str(tiny_text), args=config, train_dataset=data, eval_dataset=data)
    trainer.train()
    events = next(file for file in Path(tmp_path).rglob("events.out.tfevents*"))
    found = accumulator.EventAccumulator(str(events.parent), size_guidance={"histograms": 0, "scalars": 0})
    found.Reload()
    expected: dict[str, list[tuple[int, float]]] = {}
    for line in trainer.state.log_history:
        for metric, value in line.items():
            if metric != "step":
                expected.setdefault(tracked_name(metric), []).append((line["step"], value))
    assert {*found.Tags()["scalars"]} == {*expected}
    assert {"train/loss", "train/rewards/margins", "train/uni_dpo/w_perf", "train/pairs_per_second"} <= {*expected}
    for name, points in expected.items():
        assert [(event.step, event.value) for event in found.Scalars(name)] == [
            (step, pytest.approx(value, rel=1e-5, abs=1e-6)) for step, value in points
        ], name
    assert {*found.Tags()["histograms"]} == DISTRIBUTIONS | {"train/uni_dpo/pairs/chosen_drift"}
    rows = [row for row in read_ledger(config.output_dir).to_pylist() if row["split"] == "train"]
    for event in found.Histograms("train/uni_dpo/pairs/w_perf"):
        seen = [row["w_perf"] for row in rows if row["step"] == event.step]
        shown = event.histogram_value
        assert (shown.num, shown.min, shown.max) == (4, pytest.approx(min(seen)), pytest.approx(max(seen)))
        assert shown.sum == pytest.approx(sum(seen), rel=1e-5)


TRACKIO = """
import json, sys
from datasets import Dataset
from uni_dpo.trl import UniDPOConfig, UniDPOTrainer
model, output, rows = sys.argv[1:]
config = UniDPOConfig(
    output_dir=output, bf16=False, use_cpu=True, per_device_train_batch_size=4, num_train_epochs=2, logging_steps=1,
    save_strategy="no", report_to="trackio", gradient_checkpointing=False, project="pairs", run_name="one",
    trackio_space_id=None,
)
trainer = UniDPOTrainer(model, args=config, train_dataset=Dataset.from_list(json.loads(rows)))
trainer.train()
trainer.save_state()
"""


def test_trackios_local_store_gets_the_log_and_distributions(tiny_text: Path, text_rows: Rows, tmp_path: Path) -> None:
    pytest.importorskip("trackio", reason="needs trackio: pip install trackio")
    environment = os.environ | {"TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    output = tmp_path / "out"
    command = [sys.executable, "-c", TRACKIO, str(tiny_text), str(output), json.dumps(text_rows)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=600)
    store = next((tmp_path / "trackio").glob("*.db"))
    with sqlite3.connect(store) as connection:
        kept = [json.loads(row[0]) for row in connection.execute("select metrics from metrics order by step")]
    log = [line for line in json.loads((output / "trainer_state.json").read_text())["log_history"] if "loss" in line]
    scalars = [line for line in kept if "train/loss" in line]
    assert len(scalars) == len(log) == 4
    for line, expected in zip(scalars, log, strict=True):
        assert {*line} - {"train/global_step"} == {tracked_name(name) for name in expected if name != "step"}
        for name, value in expected.items():
            if name != "step":
                assert line[tracked_name(name)] == pytest.approx(value), name
    shown = [line for line in kept if {*line} >= DISTRIBUTIONS]
    assert [line["train/global_step"] for line in shown] == [1, 2, 3, 4]
    rows = [row for row in read_ledger(output).to_pylist() if row["split"] == "train"]
    for line in shown:
        histogram = line["train/uni_dpo/pairs/reward_margin"]
        seen = [
            row["policy_margin"] - row["reference_margin"] for row in rows if row["step"] == line["train/global_step"]
        ]
        counts, edges = np.array(histogram["values"]), np.array(histogram["bins"])
        assert counts.sum() == len(seen) == 4
        if np.ptp(seen) > 1e-3:
            assert (edges[0], edges[-1]) == pytest.approx((min(seen), max(seen)), abs=1e-4)
