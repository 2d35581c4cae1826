"""What a run keeps of its rounds and when it stops, on recorded evaluations: no model is asked or trained."""

import json
from pathlib import Path

import pytest
import yaml

from uni_dpo.align import run as running
from uni_dpo.align.config import AlignConfig
from uni_dpo.align.layout import WorkLayout
from uni_dpo.align.summary import _spent
from uni_dpo.errors import UniDPOError

QUESTIONS = 6
RIGHT = {
    "base": 0,
    "round-1/model/checkpoint-2": 6,
    "round-1/model": 3,
    "round-2/model/checkpoint-2": 0,
    "round-2/model": 0,
    "round-3/model/checkpoint-2": 0,
    "round-3/model": 0,
    "round-1/baselines/DPO/model/checkpoint-2": 2,
    "round-1/baselines/DPO/model": 2,
    "round-2/baselines/DPO/model/checkpoint-2": 2,
    "round-2/baselines/DPO/model": 2,
}
"""Model → how many of the questions it is right on."""


def leave(file):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()


def recorded(work, trained, asked=None):
    """What stands in for the program's commands: trainings leave two checkpoints, models are right as in `RIGHT`."""

    def run_command(words, template, **named):
        if words[0] == "train":
            options = yaml.safe_load(Path(words[1]).read_text())
            trained.append(options["model_name_or_path"])
            model = Path(options["output_dir"])
            (model / "checkpoint-2").mkdir(parents=True)
            (model / "trainer_state.json").write_text('{"global_step": 4}')
        if words[:2] == ("engine", "run"):
            place = ("0-sample.jsonl", "1-reward.jsonl", "dataset/pairs.json")[int(words[-1])]
            leave(Path(words[words.index("--work-dir") + 1]) / place)
        for option in ("--html", "--output"):
            if option in words:
                leave(Path(words[words.index(option) + 1]))
        if words[0] == "predict":
            model = Path(words[words.index("--model") + 1])
            right = RIGHT[str(model.relative_to(work)) if model.is_relative_to(work) else "base"]
            rows = [{"id": str(n), "correct": float(n < right)} for n in range(QUESTIONS)]
            output = Path(words[2])
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return 0

    return run_command


def test_the_best_of_a_round_goes_on_and_a_round_that_does_not_help_is_the_last(settings, monkeypatch):
    config = AlignConfig(settings(rounds=4))
    trained, said = [], []
    monkeypatch.setattr(running, "run_command", recorded(config.work, trained))
    running.run_align(config, say=said.append)
    best = str(config.work / "round-1/model/checkpoint-2")
    assert trained == [
        str(Path(config.settings.model).absolute()),
        best,
    ]  # the second round begins with the first's best
    stopped = (
        "this round did not help: -100.00 on 6 validation questions (95 % interval -100.00 … -100.00); "
        "the model before it is kept and no further round follows"
    )
    (line,) = [line for line in said if line.startswith("2/choose")]
    assert line.endswith(stopped)
    assert not any(line.startswith("3/") for line in said)
    summary = json.loads((config.work / "summary.json").read_text())
    assert summary["model"] == best
    assert [row["chosen"] for row in summary["rounds"]] == ["checkpoint-2", "checkpoint-2"]
    assert [row["kept"] for row in summary["rounds"]] == [True, False]
    assert summary["rounds"][1]["reason"] == stopped
    assert [(row["model"], row["mean"]) for row in summary["test"]] == [("before", 0.0), ("round 1", 100.0)]
    assert stopped in (config.work / "summary.md").read_text()


@pytest.fixture
def finished(settings, monkeypatch):
    """Run a configuration of two rounds with recorded commands; return its settings and what was trained."""
    raw, trained = settings(rounds=2, go_on="always", evaluate={"grader": "exact"}), []
    work = AlignConfig(raw).work
    monkeypatch.setattr(running, "run_command", recorded(work, trained))
    monkeypatch.setattr(running, "PATIENCE", 0.0)
    running.run_align(AlignConfig(raw), say=lambda line: None)
    return raw, trained


def words(raw):
    return {stage.name: standing.word for stage, standing, _ in running.standings(AlignConfig(raw))}


def test_a_work_dir_that_was_moved_goes_on_in_its_new_place(finished, tmp_path, monkeypatch):
    raw, trained = finished
    old, new = AlignConfig(raw).work, tmp_path / "moved"
    old.rename(new)
    moved = AlignConfig(raw | {"work_dir": str(new), "rounds": 3})
    monkeypatch.setattr(running, "run_command", recorded(new, trained))
    said = []
    running.run_align(moved, say=said.append)
    assert [line.split()[0] for line in said][:1] == ["3/sample"]
    assert trained[-1] == str(new / "round-2/model/checkpoint-2")
    assert not old.exists()
    summary = (new / "summary.json").read_text()
    assert str(new / "round-1/model/checkpoint-2") in summary
    assert f'"{old}' not in summary


@pytest.mark.parametrize("restart", ["report", "summary"])
def test_what_comes_after_the_rounds_is_done_again_without_them(finished, restart):
    raw, trained = finished
    work = AlignConfig(raw).work
    (work / "report.html").write_text("old")
    running.run_align(AlignConfig(raw), restart=restart, say=lambda line: None)
    assert (work / "round-1/model/trainer_state.json").is_file()
    assert (work / "round-2/model/trainer_state.json").is_file()
    assert not list((work / "aside").rglob("round-*"))
    assert len(trained) == 2
    assert (work / "summary.json").is_file()


def test_a_stage_before_that_is_stale_is_said_before_anything_is_put_aside(finished):
    raw, _ = finished
    changed = AlignConfig(raw | {"train": {**raw["train"], "learning_rate": 1e-5}})
    with pytest.raises(UniDPOError, match="--from 1/train"):
        running.run_align(changed, restart="2/train", say=lambda line: None)
    with pytest.raises(UniDPOError, match="--until 1/pair comes before --from 1/train"):
        running.run_align(AlignConfig(raw), restart="1/train", until="1/pair", say=lambda line: None)
    assert not (changed.work / "aside").exists()
    assert set(words(raw).values()) == {"done"}


def test_fewer_rounds_and_more_again_take_nothing_up_that_other_settings_made(finished):
    """Of the round that was one too many neither checkpoints nor rows are left for the next."""
    raw, _ = finished
    one = raw | {"rounds": 1}
    assert words(one)["report"] == "to do"
    running.run_align(AlignConfig(one), say=lambda line: None)
    assert set(words(raw).values()) - {"to do"} == {"done"}
    assert words(raw)["2/test"] == "done"
    lower = {"train": {**raw["train"], "learning_rate": 1e-5}}
    running.run_align(AlignConfig(one | lower), restart="1/train", say=lambda line: None)
    assert not (AlignConfig(raw).work / "round-2").exists()
    assert words(raw | lower)["2/sample"] == "to do"


def test_a_baseline_that_was_taken_out_is_not_taken_up_by_other_settings(finished):
    raw, _ = finished
    mine = {"baselines": {"DPO": {"pref_loss": "sigmoid", "learning_rate": 1e-3}}}
    running.run_align(AlignConfig(raw | mine), say=lambda line: None)
    work = AlignConfig(raw).work
    assert (work / "round-1/baselines/DPO/model/checkpoint-2").is_dir()
    running.run_align(AlignConfig(raw), restart="2/test", say=lambda line: None)  # forgets what is no stage now
    mine["baselines"]["DPO"]["learning_rate"] = 1e-4
    running.run_align(AlignConfig(raw | mine), until="1/DPO/train", say=lambda line: None)
    options = yaml.safe_load((work / "round-1/baselines/DPO/train.yaml").read_text())
    assert "resume_from_checkpoint" not in options
    assert list((work / "aside").rglob("DPO/model/checkpoint-2"))


@pytest.mark.parametrize("kind", ["predict", "engine", "train", "data"])
def test_a_launcher_that_does_not_wait_is_said(settings, monkeypatch, kind):
    """As `sbatch` is: it ends well at once, and what the command makes is not there."""
    config = AlignConfig(settings())
    run_command = recorded(config.work, [])
    monkeypatch.setattr(
        running, "run_command", lambda said, *a, **k: 0 if said[0] == kind else run_command(said, *a, **k)
    )
    monkeypatch.setattr(running, "PATIENCE", 0.0)
    with pytest.raises(UniDPOError, match=r"its command ended well, but there is no .*sbatch --wait"):
        running.run_align(config, say=lambda line: None)
    assert "begun" in words(settings()).values()


def test_what_was_spent_has_the_evaluations_in_it_and_nothing_put_aside(settings):
    layout = WorkLayout(AlignConfig(settings()))
    used = json.dumps({"stages": {"reward": {"counts": {"usage": {"requests": 3, "cost": 0.25}}}, "pair": {}}})
    for place in (
        "base/test/model",
        "round-1/engine",
        "round-1/validation/final",
        "aside/1/round-1/engine",
        "round-2/engine",
    ):
        leave(layout.work / place / "manifest.json")
        (layout.work / place / "manifest.json").write_text(used)
    assert _spent(layout) == {"requests": 9, "cost": 0.75}  # of one round
