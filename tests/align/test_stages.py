"""Which stages there are, what makes them stale, and what their commands say."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from uni_dpo.align.choice import Choice, write_choice
from uni_dpo.align.commands import Commands, _last_whole
from uni_dpo.align.config import AlignConfig
from uni_dpo.align.layout import WorkLayout
from uni_dpo.align.stages import AlignStages
from uni_dpo.align.state import AlignState


def names(raw):
    return [stage.name for stage in AlignStages(AlignConfig(raw))]


def stage(raw, name):
    return next(found for found in AlignStages(AlignConfig(raw)) if found.name == name)


def choice(work, number, *, goes_on=True, kept=True):
    made = Choice(
        "final", "where the work dir was before", 0.0, {"final": 1.0}, 1.0, 0.0, 2.0, 6, kept, goes_on, "because"
    )
    write_choice(work / f"round-{number}" / "choice.json", made)


def changed_between(one, two):
    found = []
    for config in (AlignConfig(one), AlignConfig(two)):
        state = AlignState(config.work)
        found.append({stage.name: state.fingerprint(stage) for stage in AlignStages(config)})
    return [name for name in found[0] if found[0][name] != found[1].get(name)]


def test_the_order_of_the_stages(settings):
    assert names(settings()) == [
        *("validate", "test", "1/sample", "1/score", "1/pair", "1/check", "1/train", "1/validate", "1/choose"),
        *("1/test", "report", "summary"),
    ]
    raw = settings(validation=0.2, calibrate={"high": 5}, baselines={"DPO": {"pref_loss": "sigmoid"}}, rounds=2)
    found = names(raw)
    assert found[:3] == ["split", "validate", "test"]
    assert found[5:9] == ["1/pair", "1/calibrate", "1/register", "1/check"]
    assert "2/DPO/choose" in found


def test_a_round_that_does_not_go_on_is_the_last(settings, tmp_path):
    raw = settings(rounds=3)
    choice(tmp_path / "work", 1, goes_on=False)
    assert "2/sample" not in names(raw)
    choice(tmp_path / "work", 1)
    assert "3/sample" in names(raw)


def test_a_change_makes_stale_what_depends_on_it(settings, base_checkpoint, tmp_path):
    base = settings()
    after_training = ["1/train", "1/validate", "1/choose", "1/test", "report", "summary"]
    assert changed_between(base, settings(train={"finetuning_type": "full", "learning_rate": 1e-5})) == after_training
    scored = settings(engine={**base["engine"], "reward": {"high": 5.0}})
    assert changed_between(base, scored) == ["1/score", "1/pair", "1/check", *after_training]
    assert changed_between(base, settings(launcher="srun {command}", attempts=3)) == []
    faster = settings(engine={**base["engine"], "batch_size": 4, "models": {"sampler": {"batch_size": 2}}})
    assert changed_between(base, faster) == []
    assert changed_between(base, settings(rounds=2)) == ["report", "summary"]
    everything = ["validate", "test", "1/sample", "1/score", "1/pair", "1/check", *after_training]
    other = settings(model=str(base_checkpoint))
    assert changed_between(base, other) == everything
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("Look closely. {question}")
    asked = settings(engine={**base["engine"], "sample": {"n": 4, "prompt": str(prompt)}})
    assert changed_between(base, asked) == everything
    for sampler in ({"prompt_style": "base"}, {"max_pixels": 3136}):
        looked = {**base["engine"], "models": {"sampler": sampler}}
        assert changed_between(base, settings(engine=looked)) == everything
        scored = settings(engine=looked, evaluate={"by": "score"})
        assert changed_between(settings(evaluate={"by": "score"}), scored) == everything


def test_an_edited_file_of_questions_is_noticed(settings):
    raw = settings()
    before = {name: stage(raw, name).settings for name in ("1/sample", "validate", "test")}
    with Path(raw["test"]).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "new", "question": "?", "answer": "x"}) + "\n")
    changed = [name for name, known in before.items() if stage(raw, name).settings != known]
    assert changed == ["test"]


def test_an_image_with_other_content_is_noticed_and_a_copy_of_it_is_not(settings, tmp_path):
    """Paths and times are of no effect, and an image is read again only where its size or time is another."""
    place = tmp_path / "here"
    place.mkdir()
    questions = Path(settings()["questions"])
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    for row in rows:
        image = Path(row["images"][0])
        row["images"] = [image.name]
        (place / image.name).write_bytes(image.read_bytes())
    file = place / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")

    def known(place):
        stages = AlignStages(AlignConfig(settings(questions=str(place / "questions.jsonl"))))
        found = {stage.name: stage.settings for stage in stages}
        stages.contents.remember()
        return found

    before = known(place)
    copy = Path(shutil.copytree(place, tmp_path / "there", copy_function=shutil.copyfile))
    assert known(copy) == before
    image = copy / rows[0]["images"][0]
    image.write_bytes((copy / rows[1]["images"][0]).read_bytes())
    after = known(copy)
    assert [name for name in before if before[name] != after[name]] == ["1/sample"]
    assert before["1/sample"]["questions"] == after["1/sample"]["questions"]
    kept = json.loads((tmp_path / "work" / "contents.json").read_text())
    assert len(kept) >= 2 * len(rows)


def test_an_edited_dataset_of_the_warm_up_and_an_edited_benchmark_are_noticed(settings, tmp_path):
    (tmp_path / "sft.json").write_text("[]")
    (tmp_path / "bench.tsv").write_text("index\tquestion\n")
    (tmp_path / "dataset_info.json").write_text(json.dumps({"sft": {"file_name": "sft.json"}}))
    warm_up = {"dataset": "sft", "dataset_dir": str(tmp_path)}
    raw = settings(warm_up=warm_up, benchmarks={"Mine": {"path": str(tmp_path / "bench.tsv"), "type": "vqa"}})
    before = {name: stage(raw, name).settings for name in ("warm-up", "validate", "benchmarks")}
    for file, name in (("sft.json", "warm-up"), ("bench.tsv", "benchmarks")):
        (tmp_path / file).write_text("[{}]")
        changed = [other for other in before if stage(raw, other).settings != before[other]]
        assert changed == [name]
        before[name] = stage(raw, name).settings


def test_the_state_says_what_changed(settings, tmp_path):
    def standing(state, raw):
        return {stage.name: state.standing(stage) for stage in AlignStages(AlignConfig(raw))}["1/train"]

    state, raw = AlignState(tmp_path), settings()
    assert standing(state, raw).word == "to do"
    first = stage(raw, "1/train")
    state.begin(first)
    assert standing(state, raw).word == "begun"
    state.end(first, 2.0)
    again = AlignState(tmp_path)
    assert standing(again, raw).word == "done"
    changed = standing(again, settings(train={"finetuning_type": "full", "learning_rate": 1e-5}))
    assert (changed.word, changed.why) == ("stale", "learning_rate was null, is 1e-05")


def test_a_later_round_begins_with_the_chosen_model_and_its_stated_reference(settings, tmp_path, tiny_qwen2_vl):
    choice(tmp_path / "work", 1)
    chosen = str(tmp_path / "work" / "round-1" / "model")
    raw = settings(rounds=2, seed=5)
    for reference, expected in (("previous", None), ("base", str(tiny_qwen2_vl))):
        stage({**raw, "reference": reference}, "2/train").commands()
        written = yaml.safe_load((tmp_path / "work" / "round-2" / "train.yaml").read_text())
        assert written["model_name_or_path"] == chosen
        assert written.get("ref_model") == expected
        assert written["seed"] == 6
    [command] = stage(raw, "2/sample").commands()
    assert command.words[:2] == ("engine", "run")
    engine = yaml.safe_load((tmp_path / "work" / "round-2" / "engine.yaml").read_text())
    assert engine["models"]["sampler"]["model"] == chosen
    assert engine["seed"] == 6
    simpo = {**raw, "reference": "base", "train": {"finetuning_type": "full", "pref_loss": "simpo"}}
    stage(simpo, "2/train").commands()
    assert "ref_model" not in yaml.safe_load((tmp_path / "work" / "round-2" / "train.yaml").read_text())


def test_an_adapter_lies_on_its_base(settings, tmp_path):
    adapter = tmp_path / "work" / "round-1" / "model"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/models/base"}))
    choice(tmp_path / "work", 1)
    stage(settings(rounds=2, train={"finetuning_type": "lora"}), "2/train").commands()
    written = yaml.safe_load((tmp_path / "work" / "round-2" / "train.yaml").read_text())
    assert (written["model_name_or_path"], written["adapter_name_or_path"]) == ("/models/base", str(adapter))


def test_training_goes_on_from_the_last_whole_checkpoint_only(tmp_path):
    for step, state, processor in ((2, '{"global_step": 2}', True), (4, '{"global_st', True), (6, "{}", False)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "trainer_state.json").write_text(state)
        if processor:
            (folder / "preprocessor_config.json").write_text("{}")
    assert _last_whole(tmp_path) == tmp_path / "checkpoint-2"
    assert [folder.name for folder in tmp_path.iterdir()] == ["checkpoint-2"]


@pytest.mark.parametrize(("epoch", "kept"), [(0.4, ["checkpoint-2"]), (1.0, ["checkpoint-2", "checkpoint-4"])])
def test_a_training_killed_after_its_last_step_takes_no_step_more(tmp_path, epoch, kept):
    """Within an epoch transformers would take one: it looks whether all steps are done after a step only."""
    for step, reached in ((2, 0.2), (4, epoch)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        state = {"global_step": step, "max_steps": 4, "epoch": reached}
        (folder / "trainer_state.json").write_text(json.dumps(state))
        (folder / "preprocessor_config.json").write_text("{}")
    assert _last_whole(tmp_path) == tmp_path / kept[-1]
    assert sorted(folder.name for folder in tmp_path.iterdir()) == kept


def test_a_stopped_training_of_another_loss_begins_again(settings, tmp_path):
    """A fully tuned model is resumed by other names than it was saved by, unless the loss is ours."""
    for loss, resumed in (("uni_dpo", True), ("sigmoid", False)):
        folder = tmp_path / "work" / "round-1" / "model" / "checkpoint-2"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trainer_state.json").write_text('{"global_step": 2}')
        (folder / "preprocessor_config.json").write_text("{}")
        stage(settings(train={"finetuning_type": "full", "pref_loss": loss}), "1/train").commands()
        written = yaml.safe_load((tmp_path / "work" / "round-1" / "train.yaml").read_text())
        assert ("resume_from_checkpoint" in written) is resumed
        assert folder.exists() is resumed


def test_candidates_name_the_last_state_once(settings, tmp_path):
    arm = AlignStages(AlignConfig(settings())).layout.arms(1)[0]
    for step in (10, 5, 20):
        (arm.model / f"checkpoint-{step}").mkdir(parents=True)
    (arm.model / "trainer_state.json").write_text('{"global_step": 20}')
    assert list(arm.candidates()) == ["checkpoint-5", "checkpoint-10", "final"]


def test_what_is_said_of_the_sampler_holds_where_it_is_evaluated(settings):
    raw = settings(benchmarks={"MME": {"class": "ImageYORNDataset", "dataset": "MME"}})
    raw["engine"]["models"] = {
        **raw["engine"].get("models", {}),
        "sampler": {"max_pixels": 50176, "quantization": "4bit"},
    }
    commands = Commands(WorkLayout(AlignConfig(raw)))
    (ask,) = commands.ask("test", {"before": "m"}, commands.layout.work / "asked")
    assert {"--model-options=max_pixels=50176", '--model-options=quantization="4bit"'} <= set(ask.words)
    commands.benchmarks()
    written = json.loads((commands.layout.work / "benchmarks/config.json").read_text())
    assert written["model"]["before"]["max_pixels"] == 50176
