"""The files that a demo starts from."""

import json
import shlex
from pathlib import Path

import pytest

from uni_dpo.align.config import AlignConfig
from uni_dpo.align.stages import AlignStages
from uni_dpo.demo import scenes
from uni_dpo.demo.digits import SPLITS, answer, closeness
from uni_dpo.demo.task import QUESTION_FILES, write_task
from uni_dpo.engine import Question
from uni_dpo.engine.config import EngineConfig
from uni_dpo.engine.pipelines.verifiable import Verifiable
from uni_dpo.engine.records import Answered
from uni_dpo.errors import UniDPOError

ROOT = Path(__file__).parents[2]


def test_the_task_is_whole_and_the_example_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_task("digits", "outputs/demo")
    images: dict[str, set[str]] = {
        "warm_up": {row["images"][0] for row in json.loads((folder / "warm_up.json").read_text())}
    }
    for split, name in QUESTION_FILES.items():
        rows = [json.loads(line) for line in (folder / f"{name}.jsonl").read_text().splitlines()]
        assert len(rows) == SPLITS[split]
        images[name] = {row["images"][0] for row in rows}
    assert len(set.union(*images.values())) == sum(map(len, images.values())) == sum(SPLITS.values())
    config = AlignConfig.load(ROOT / "examples" / "align" / "digits.yaml")
    names = [stage.name for stage in AlignStages(config)]
    assert names[0] == "warm-up"
    assert {"1/train", "1/DPO/train", "benchmarks"} <= set(names)
    before = (folder / "model" / "model.safetensors").stat().st_mtime_ns
    assert write_task("digits", folder) == folder
    assert (folder / "model" / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(UniDPOError, match="name another folder, or delete it"):
        write_task("digits", folder, seed=1)


def test_the_scenes_come_with_what_their_judges_learn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "SPLITS", {"train": 6, "preference": 3, "validation": 2, "held_out": 2})
    folder = write_task("scenes", "outputs/scenes")
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("warm_up", "judge", "ranked")}
    assert set(json.loads((folder / "dataset_info.json").read_text())) == set(read)
    truths = {row["images"][0]: row["output"] for row in read["warm_up"]}
    checks = [row for row in read["judge"] if row["images"]]
    assert {row["output"] for row in checks} == {"Yes", "No"}
    for row in checks:
        claim = row["instruction"].removeprefix("<image>").replace("?", ".")
        assert (claim in truths[row["images"][0]]) == (row["output"] == "Yes")
    assert len(read["ranked"]) > 2
    for row in read["ranked"]:
        truth = Question("q", "?", reference=truths[row["images"][0]])
        assert scenes.right_claims(row["chosen"], truth) > scenes.right_claims(row["rejected"], truth)
    config = AlignConfig.load(ROOT / "examples" / "align" / "scenes.yaml")
    assert next(stage.name for stage in AlignStages(config)) == "warm-up"
    engine = EngineConfig(config.engine({"model": "m"}))
    truth = "Two shapes. Red disc top left. Blue cross bottom right."
    said = (truth, truth.replace("cross", "ring"), "Three shapes.", "")
    scored = Verifiable(engine.reward, {}, 0).reward([Answered(Question("q", "?", reference=truth), said)])[0]
    assert [answer.score for answer in scored.answers] == pytest.approx([5.0, 4.0, 0.0, 0.0])
    good = config.settings.train["uni_dpo_tau_good"]
    assert [answer.score >= good for answer in scored.answers] == [True, True, False, False]


def test_a_trained_judge_stands_in_the_grader_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command of docs/align.md."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "SPLITS", {"train": 2, "preference": 1, "validation": 1, "held_out": 1})
    write_task("scenes", "outputs/scenes")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    page = (ROOT / "docs" / "align.md").read_text(encoding="utf-8").replace("\\\n", "")
    commands = [shlex.split(line) for line in page.splitlines() if "engine.pipeline=" in line]
    found = []
    for _, verb, recipe, *given in commands:
        assert verb == "align"
        config = AlignConfig.load(recipe, given)
        engine = EngineConfig(config.engine({"model": "m"}))
        found.append(engine.settings.pipeline)
    assert found == ["reward_model"]


@pytest.mark.parametrize(
    ("given", "grade"),
    [
        (answer(3), 1.0),
        (f" {answer(3)}\n", 1.0),
        (answer(4), 0.4 * 8 / 9),
        (answer(2), 0.4 * 8 / 9),
        (answer(9), 0.4 * 3 / 9),
        ("The digit is three three.", 0.0),
        ("three", 0.0),
        ("", 0.0),
    ],
)
def test_closeness_by_hand(given: str, grade: float) -> None:
    question = Question(id="q", text="?", images=(), reference=answer(3))
    assert closeness(given, question) == pytest.approx(grade)
