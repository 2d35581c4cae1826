"""The lines that a training shows, and what goes to its log file instead of the terminal."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from uni_dpo.monitor.console import log_file, readable
from uni_dpo.monitor.progress import clock, evaluation_line, train_line

LOGS = {
    "loss": 0.41234, "rewards/accuracies": 0.71875, "rewards/margins": 0.3125, "logps/chosen": -1.2412,
    "rewards/chosen": -0.1, "uni_dpo/w_qual": 0.8312, "uni_dpo/w_perf": 0.4051, "uni_dpo/nll_active": 0.125,
    "learning_rate": 1e-5,
}  # fmt: skip


def test_a_line_says_what_a_person_reads() -> None:
    assert train_line(LOGS, 40, 920, drift=-0.05) == (
        "step  40/920  loss 0.4123  acc 0.72  margin +0.312  logp -1.241 (-0.050)  w_qual 0.83  w_perf 0.41  nll 12%"
    )


def test_other_trainings_show_what_they_have() -> None:
    assert train_line({"loss": 2.0, "learning_rate": 1e-5}, 1, 9) == "step 1/9  loss 2.0000  lr 1.00e-05"


def test_an_evaluation_is_a_line_too() -> None:
    logs = {"eval_loss": 0.5, "eval_rewards/accuracies": 0.75, "eval_rewards/margins": 0.1, "epoch": 1.0}
    assert evaluation_line(logs, 8) == "evaluated at step 8: eval_loss 0.5000  acc 0.75  margin +0.100"
    assert evaluation_line({"epoch": 1.0}, 8) == ""


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7261, "2:01:01")])
def test_spans_of_time(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_words_of_libraries_go_to_the_file_and_warnings_to_both(tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.delenv("UNI_DPO_VERBOSE", raising=False)
    logger, ours = logging.getLogger("transformers.somewhere"), logging.getLogger("llamafactory.uni_dpo.somewhere")
    logging.getLogger("transformers").setLevel(logging.INFO)
    logging.getLogger("llamafactory").setLevel(logging.INFO)
    with readable(tmp_path) as file:
        transformers.utils.logging.enable_explicit_format()  # as LlamaFactory does
        logger.info("Model config {")
        logger.warning("a setting is not used")
        ours.info("pair_forward: one sequence per pair")
        print("training example:")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == "warning: a setting is not used\npair_forward: one sequence per pair\n"
    assert file == log_file(tmp_path)
    kept = file.read_text()
    assert all(
        words in kept for words in ("Model config {", "a setting is not used", "one sequence", "training example:")
    )


@pytest.mark.slow
def test_a_run_shows_a_line_per_step_and_keeps_every_metric(config: Any, tmp_path: Path) -> None:
    settings = tmp_path / "run.json"
    shown = {}
    for name, more in (("quiet", []), ("loud", ["--verbose"])):
        settings.write_text(json.dumps(config(output_dir=str(tmp_path / name))))
        command = [sys.executable, "-c", "from uni_dpo.cli import main; main()", "train", str(settings), *more]
        run = subprocess.run(
            command, env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=True
        )
        shown[name] = run.stdout + run.stderr
    steps = [line for line in shown["quiet"].splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/4", "2/4", "3/4", "4/4"]
    assert all(
        word in steps[-1] for word in ("loss", "acc", "margin", "logp", "w_qual", "w_perf", "nll", "pairs/s", "left")
    )
    for words in ("chosen_input_ids", "vision_start_token_id", "'uni_dpo/w_qual'"):
        assert words not in shown["quiet"]
        assert words in shown["loud"]
    assert "chosen_input_ids" in log_file(tmp_path / "quiet").read_text()
    states = [json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in shown]
    assert [sorted(line) for line in states[0]] == [sorted(line) for line in states[1]]
    assert [line.get("loss") for line in states[0]] == [line.get("loss") for line in states[1]]
