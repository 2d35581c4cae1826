"""What a run keeps of its rounds and when it stops, on recorded evaluations: no model is asked or trained."""

import json
from pathlib import Path

import yaml

from uni_dpo.align import run as running
from uni_dpo.align.config import AlignConfig

QUESTIONS = 6
RIGHT = {
    "base": 0,
    "round-1/model/checkpoint-2": 6,
    "round-1/model": 3,
    "round-2/model/checkpoint-2": 0,
    "round-2/model": 0,
}
"""Model → how many of the questions it is right on."""


def recorded(work, trained):
    """What stands in for the program's commands: trainings leave two checkpoints, models are right as in `RIGHT`."""

    def run_command(words, template, **named):
        if words[0] == "train":
            options = yaml.safe_load(Path(words[1]).read_text())
            trained.append(options["model_name_or_path"])
            model = Path(options["output_dir"])
            (model / "checkpoint-2").mkdir(parents=True)
            (model / "trainer_state.json").write_text('{"global_step": 4}')
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
