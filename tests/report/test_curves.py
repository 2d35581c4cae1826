"""Figures from what a training leaves."""

import json
from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.report.curves import CURVES, draw_runs


def test_a_figure_of_two_runs(tmp_path: Path) -> None:
    for name, metrics in (("ours", list(CURVES)), ("dpo", ["loss"])):
        log = [{"step": step, **dict.fromkeys(metrics, step / 10)} for step in range(5)]
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    figure = draw_runs({"ours": tmp_path / "ours", "dpo": tmp_path / "dpo"}, tmp_path / "curves.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert [path.name for path in tmp_path.glob(".curves*")] == []


def test_a_folder_without_a_training_is_named(tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match=r"nowhere/trainer_state\.json"):
        draw_runs({"x": tmp_path / "nowhere"}, tmp_path / "curves.png")
