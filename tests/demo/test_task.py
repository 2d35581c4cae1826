"""The files that a demo starts from."""

import json
from pathlib import Path

import pytest

from uni_dpo.align.config import AlignConfig
from uni_dpo.align.stages import AlignStages
from uni_dpo.demo import scenes
from uni_dpo.demo.digits import SPLITS, answer, closeness
from uni_dpo.demo.scene_judges import HOW_MANY, KINDS, NOTHING, parts
from uni_dpo.demo.task import QUESTION_FILES, write_task
from uni_dpo.engine import Question
from uni_dpo.engine.config import EngineConfig
from uni_dpo.engine.pipelines.verifiable import Verifiable
from uni_dpo.engine.records import Answered
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.reading import read_mapping

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


SMALL = {"train": 6, "preference": 3, "validation": 2, "held_out": 2}


def test_the_scenes_come_with_what_their_judges_learn_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "SPLITS", SMALL)
    folder = write_task("scenes", "outputs/scenes")
    read = {name: json.loads((folder / f"{name}.json").read_text()) for name in ("warm_up", "judge", "ranked")}
    assert set(json.loads((folder / "dataset_info.json").read_text())) == set(read)
    truths = {row["images"][0]: row["output"] for row in read["warm_up"]}
    answers: dict[str, set[str]] = {}
    for row in read["judge"]:
        claims = [claim.lower() for claim in parts(truths[row["images"][0]])]
        question = row["instruction"].removeprefix("<image>")
        word = row["output"].lower().removesuffix(".")
        kind, _, place = question.removesuffix("?").partition(" ")
        if kind in KINDS:
            assert [word] == ([w for w in KINDS[kind] if f"{w} {place}." in claims] or [NOTHING])
        elif question == HOW_MANY:
            assert claims[0].split()[0] == word
        else:
            assert (question, row["output"]) == (scenes.QUESTION, truths[row["images"][0]])
        answers.setdefault(kind, set()).add(word)
    assert set(answers) == {*KINDS, HOW_MANY[:-1], "Describe"}
    assert NOTHING in answers["Colour"] & answers["Shape"]
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


def test_trained_judges_stand_in_the_grader_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their recipes begin with the same model and compare by the truth, as that of the grader does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scenes, "SPLITS", SMALL)
    write_task("scenes", "outputs/scenes")
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    graded = AlignConfig.load("examples/align/scenes.yaml").settings
    for name, pipeline in {"divide": "divide_and_conquer", "rated": "reward_model"}.items():
        config = AlignConfig.load(f"examples/align/scenes_{name}.yaml")
        engine = EngineConfig(config.engine({"model": "m"}))
        assert engine.settings.pipeline == pipeline
        assert config.settings.evaluate == graded.evaluate
        assert config.settings.model == f"{graded.work_dir}/warm-up/model"
        trained = read_mapping(ROOT / f"examples/align/scenes_{'judge' if name == 'divide' else 'reward'}.yaml")
        assert trained["output_dir"] in {model.get("model") for model in config.settings.engine["models"].values()}
        assert trained["dataset"] in json.loads(Path(trained["dataset_dir"], "dataset_info.json").read_text())


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
