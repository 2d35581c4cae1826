import json
import random
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from uni_dpo.engine import EngineConfig, Question, run_engine
from uni_dpo.errors import UniDPOError

PLUGIN = str(Path(__file__).parent / "plugins" / "counting.py")


def config(**changes):
    base = {
        "pipeline": "verifiable",
        "plugins": [PLUGIN],
        "models": {"sampler": {"backend": "counting"}},
        "sample": {"n": 4},
        "reward": {"grader": "size"},
        "pairs": {"min_gap": 1.0},
        "batch_size": 5,
    }
    return {**base, **changes}


def pairs_of(work):
    return json.loads((work / "dataset" / "pairs.json").read_text())


def test_a_run_leaves_a_registered_checked_dataset(tmp_path, questions):
    result = run_engine(config(dataset={"name": "mine"}), tmp_path, questions=questions)
    rows = pairs_of(tmp_path)
    assert result.pairs == tmp_path / "dataset" / "pairs.json"
    assert result.report["pair"]["pairs"] == len(rows) > 0
    assert rows[0].keys() >= {"id", "instruction", "chosen", "rejected", "images", "score_chosen", "score_rejected"}
    by_id = {q.id: q for q in questions}
    for row in rows:
        question = by_id[row["question_id"]]
        assert row["instruction"] == "<image>" + question.text
        assert row["images"] == list(question.images)
        assert row["score_chosen"] == int(row["chosen"])
        assert row["score_chosen"] - row["score_rejected"] >= 1.0
    assert pq.read_table(tmp_path / "dataset" / "pairs.parquet").to_pylist() == rows
    entry = json.loads((tmp_path / "dataset" / "dataset_info.json").read_text())["mine"]
    assert entry["ranking"] is True
    assert entry["columns"]["score_chosen"] == "score_chosen"
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["stages"]["sample"]["counts"]["usage"]["requests"] == 12


def test_a_config_is_shown_without_keys_in_addresses():
    sampler = {"backend": "openai", "model": "m", "base_url": "http://me:secret@host/v1?key=secret"}
    shown = EngineConfig({"pipeline": "verifiable", "models": {"sampler": sampler}}).shown()
    assert shown["models"]["sampler"] == {**sampler, "base_url": "http://host/v1"}


def test_same_seed_same_file_in_whatever_order_the_questions_come(tmp_path, questions):
    shuffled = random.Random(1).sample(questions, len(questions))
    run_engine(config(), tmp_path / "a", questions=questions)
    run_engine(config(), tmp_path / "b", questions=shuffled)
    run_engine(config(seed=1), tmp_path / "c", questions=questions)
    one, other, seeded = ((tmp_path / w / "dataset" / "pairs.json").read_bytes() for w in "abc")
    assert one == other != seeded


def test_a_finished_run_asks_nothing_again(tmp_path, questions):
    log = tmp_path / "log"
    spec = config(models={"sampler": {"backend": "counting", "log": str(log)}})
    for _ in range(2):
        run_engine(spec, tmp_path / "w", questions=questions)
    assert len(log.read_text().splitlines()) == 12


def test_a_run_in_this_process_needs_no_ray(tmp_path, questions, monkeypatch):
    for module in [name for name in sys.modules if name.partition(".")[0] == "ray"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run_engine(config(), tmp_path, questions=questions).pairs is not None


def test_stages_one_at_a_time_make_the_same_file(tmp_path, questions):
    run_engine(config(), tmp_path / "a", questions=questions)
    for stage in range(3):
        result = run_engine(config(), tmp_path / "b", questions=questions, run_stage=stage)
        assert (result.pairs is not None) == (stage == 2)
    assert (tmp_path / "a/dataset/pairs.json").read_bytes() == (tmp_path / "b/dataset/pairs.json").read_bytes()


def test_a_later_stage_alone_needs_the_earlier_ones(tmp_path, questions):
    with pytest.raises(UniDPOError, match=r"stage 0 \(sample\) is not finished"):
        run_engine(config(), tmp_path, questions=questions, run_stage=1)
    run_engine(config(), tmp_path, questions=questions, run_stage=0)
    with pytest.raises(UniDPOError, match=r"stage 1 \(reward\) is not finished"):
        run_engine(config(), tmp_path, questions=questions, run_stage=2)


def test_a_changed_config_names_the_stale_stages_and_what_changed(tmp_path, questions):
    run_engine(config(), tmp_path, questions=questions)
    changed = config(reward={"grader": "size", "high": 20.0})
    with pytest.raises(UniDPOError) as caught:
        run_engine(changed, tmp_path, questions=questions)
    assert "stage 1 (reward): high was 10.0, is 20.0" in str(caught.value)
    assert "stage 0" not in str(caught.value)
    assert "--continue-from-stage 1" in str(caught.value)
    run_engine(changed, tmp_path, questions=questions, continue_from_stage=1)
    assert max(row["score_chosen"] for row in pairs_of(tmp_path)) == 8.0
    assert len(list(tmp_path.glob("1-reward.stale-*.jsonl"))) == 1


def test_a_plugin_that_was_edited_makes_stale_what_it_does(tmp_path):
    plugin = tmp_path / "mine.py"
    text = (
        "from uni_dpo.engine import register\n@register('grader', 'mine')\ndef mine(answer, question):\n    return {}\n"
    )

    def described(grade, grader="mine"):
        plugin.write_text(text.format(grade))
        made = EngineConfig(config(plugins=[PLUGIN, str(plugin)], reward={"grader": grader}))
        return {stage: made.describe(stage) for stage in ("sample", "reward", "pair")}

    first, second = described(0.0), described(1.0)
    assert [stage for stage in first if first[stage] != second[stage]] == ["reward"]
    assert described(0.0) == first
    assert "code" not in described(0.0, "exact")["reward"]


def test_half_a_stage_is_not_a_finished_one(tmp_path, questions):
    run_engine(config(), tmp_path, questions=questions)
    for name in ("0-sample.jsonl", "1-reward.jsonl"):
        lines = (tmp_path / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(lines[:6]))  # the first batch of five, and its commit
        with pytest.raises(UniDPOError, match=f"stage {name[0]} .* is not finished"):
            run_engine(config(), tmp_path, questions=questions, run_stage=int(name[0]) + 1)
        run_engine(config(), tmp_path, questions=questions)


def test_rows_without_a_manifest_are_not_taken_for_ours(tmp_path, questions):
    run_engine(config(), tmp_path, questions=questions)
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UniDPOError, match="no manifest says what made its rows"):
        run_engine(config(), tmp_path, questions=questions)


def test_a_retrained_checkpoint_is_noticed(tmp_path, questions):
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"old")
    spec = config(models={"sampler": {"backend": "counting", "model": str(weights.parent)}})
    run_engine(spec, tmp_path / "w", questions=questions)
    weights.write_bytes(b"newer")
    with pytest.raises(UniDPOError, match=r"stage 0 \(sample\): models.sampler was"):
        run_engine(spec, tmp_path / "w", questions=questions)


def test_continuing_from_a_stage_leaves_the_earlier_ones_alone(tmp_path, questions):
    with pytest.raises(UniDPOError, match=r"stage 0 \(sample\) is not finished"):
        run_engine(config(), tmp_path, questions=questions, continue_from_stage=1)
    run_engine(config(), tmp_path, questions=questions)
    result = run_engine(config(), tmp_path, questions=questions, continue_from_stage=1)
    assert set(result.report) == {"reward", "pair"}
    with pytest.raises(UniDPOError, match="exclude each other"):
        run_engine(config(), tmp_path, questions=questions, run_stage=1, continue_from_stage=1)


def test_new_questions_make_every_stage_stale(tmp_path, questions):
    run_engine(config(), tmp_path, questions=questions[:6])
    with pytest.raises(UniDPOError) as caught:
        run_engine(config(), tmp_path, questions=questions)
    assert "stage 0 (sample): questions was" in str(caught.value)
    assert "stage 1 (reward): an earlier stage changed" in str(caught.value)


def test_another_image_under_an_old_name_makes_every_stage_stale(tmp_path, questions):
    image = tmp_path / "seen.png"
    Image.new("RGB", (32, 32), "red").save(image)
    asked = [replace(question, images=(str(image),)) for question in questions]
    run_engine(config(), tmp_path / "work", questions=asked)
    Image.new("RGB", (32, 32), "blue").save(image)
    with pytest.raises(UniDPOError, match=r"stage 0 \(sample\): seen_images was"):
        run_engine(config(), tmp_path / "work", questions=asked)

    manifest = tmp_path / "work/manifest.json"  # of a version that did not look
    written = json.loads(manifest.read_text())
    del written["stages"]["sample"]["settings"]["seen_images"]
    manifest.write_text(json.dumps(written))
    with pytest.raises(UniDPOError) as caught:
        run_engine(config(), tmp_path / "work", questions=asked)
    assert "seen_images" not in str(caught.value)


def test_a_changed_pairing_is_done_again_at_once(tmp_path, questions):
    run_engine(config(), tmp_path, questions=questions)
    before = len(pairs_of(tmp_path))
    run_engine(config(pairs={"min_gap": 3.0}), tmp_path, questions=questions)
    assert 0 < len(pairs_of(tmp_path)) < before


def test_what_only_changes_the_speed_makes_nothing_stale(tmp_path, questions):
    run_engine(config(), tmp_path, questions=questions)
    run_engine(config(batch_size=3, max_failed_share=0.5), tmp_path, questions=questions)


def test_failed_questions_are_counted_kept_aside_and_tried_again(tmp_path, questions):
    log = tmp_path / "log"
    model = {"backend": "counting", "log": str(log), "fail": questions[3].id}
    result = run_engine(config(models={"sampler": model}), tmp_path / "w", questions=questions)
    assert result.report["sample"]["failed"] == 1
    assert result.warnings == ["stage 0 (sample): 1 of 12 questions yielded nothing"]
    (line,) = (tmp_path / "w/aside/0-sample.jsonl").read_text().splitlines()
    assert json.loads(line) == {"id": questions[3].id, "reason": "server on fire"}
    run_engine(config(models={"sampler": {**model, "fail": ""}}), tmp_path / "w", questions=questions)
    assert len(log.read_text().splitlines()) == 13
    run_engine(config(), tmp_path / "clean", questions=questions)
    assert pairs_of(tmp_path / "w") == pairs_of(tmp_path / "clean")


def test_too_many_failures_stop_the_run_with_the_reason(tmp_path, questions):
    model = {"backend": "counting", "fail": "digit"}
    with pytest.raises(UniDPOError, match=r"12 of 12 questions yielded nothing.*Most often: server on fire"):
        run_engine(config(models={"sampler": model}), tmp_path, questions=questions)
    assert not (tmp_path / "dataset" / "pairs.json").exists()


def test_a_cost_limit_stops_after_the_batch_and_a_higher_one_goes_on(tmp_path, questions):
    with pytest.raises(UniDPOError, match=r"spent 0.0500 of max_cost 0.04"):
        run_engine(config(max_cost=0.04), tmp_path, questions=questions)
    assert sum('"answers"' in line for line in (tmp_path / "0-sample.jsonl").read_text().splitlines()) == 5
    result = run_engine(config(max_cost=1.0), tmp_path, questions=questions)
    assert result.report["sample"]["usage"]["cost"] == pytest.approx(0.12)


def test_no_pairs_is_an_error_that_says_what_to_change(tmp_path, questions):
    with pytest.raises(UniDPOError, match=r"no pairs came of 12 questions.*min_gap"):
        run_engine(config(pairs={"min_gap": 9.0}), tmp_path, questions=questions)


def test_debug_keeps_every_request_and_reply(tmp_path, questions):
    run_engine(config(), tmp_path, questions=questions, debug=True)
    (path,) = (tmp_path / "debug").iterdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 12
    assert lines[0]["request"]["images"] == list(questions[0].images) or lines[0]["reply"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pipeline": "magic"}, "no pipeline is called 'magic'; known: "),
        ({"models": {}}, "models.sampler: the verifiable pipeline needs"),
        ({"models": {"sampler": {"backend": "counting", "x": 1}}}, "models.sampler.x: unknown setting"),
        ({"models": {"sampler": "counting"}}, "models.sampler: a mapping with `backend` and `model` is expected"),
        ({"models": {"sampler": {"backend": "gpt"}}}, "no backend is called 'gpt'"),
        ({"sample": {"n": 0}}, "sample.n: 0 is out of range"),
        ({"sample": {"n": 2, "temperature": 0}}, "temperature 0 gives the same answer"),
        ({"sample": {"top_p": 0}}, "sample.top_p: 0 is out of range"),
        ({"reward": {"grader": "taste"}}, "no grader is called 'taste'"),
        ({"reward": {"grader": "nowhere.at.all:f"}}, "the Python module 'nowhere' is not installed"),
        ({"batch_size": 0}, "batch_size: 0 is out of range"),
        ({"plugins": ["gone.py"]}, "there is no file gone.py"),
        ({"sampel": {}}, "sampel: unknown setting; did you mean 'sample'?"),
        ({"sample": {"prompt": "gone.txt"}}, "prompt 'gone.txt': no such file"),
    ],
)
def test_faults_of_the_config_are_named_before_any_work(tmp_path, questions, change, message):
    with pytest.raises(UniDPOError) as caught:
        run_engine(config(**change), tmp_path / "w", questions=questions)
    assert message in str(caught.value)
    assert not (tmp_path / "w" / "0-sample.jsonl").exists()


def test_questions_need_ids_of_their_own(tmp_path, questions):
    with pytest.raises(UniDPOError, match="of 2 questions only 1"):
        run_engine(config(), tmp_path, questions=[questions[0]] * 2)


def test_a_missing_image_is_named(tmp_path, questions):
    with pytest.raises(UniDPOError, match=r"question q: there is no file gone.png"):
        run_engine(config(), tmp_path, questions=[Question("q", "?", ("gone.png",))])


@pytest.mark.parametrize(("low", "high"), [(10, 0), (5, 5)])
def test_a_range_that_is_turned_around_is_refused(low, high):
    """It would make the wrong answers the chosen ones."""
    with pytest.raises(UniDPOError, match=rf"reward\.low: {low} is not below reward\.high, which is {high}"):
        EngineConfig(
            {"pipeline": "verifiable", "models": {"sampler": {"model": "m"}}, "reward": {"low": low, "high": high}}
        )


@pytest.mark.parametrize("token", ["<image>", "<video>", "<|image_pad|>"])
def test_an_answer_with_a_placeholder_is_left_out_and_counted(tmp_path, token):
    answers = ("7", "8", f"see {token}")
    questions = [Question(str(number), "Q?", reference="7", answers=answers) for number in range(3)]
    spec = {"pipeline": "verifiable", "sample": {"sampler": "given"}}
    result = run_engine(spec, tmp_path, questions=questions)
    assert {(row["chosen"], row["rejected"]) for row in pairs_of(tmp_path)} == {("7", "8")}
    assert "3 answers hold a placeholder such as <image>" in result.warnings[0]
