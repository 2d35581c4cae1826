"""Questions in, answers beside labels out, with a scripted model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from PIL import Image

from uni_dpo.cli.models import predict as predict_command
from uni_dpo.engine import Failure, Request, Sample, Sampling, Usage, register
from uni_dpo.errors import UniDPOError
from uni_dpo.inference.predict import PredictReport, predict_file
from uni_dpo.inference.settings import PredictSettings
from uni_dpo.models.backends.base import weights_of
from uni_dpo.settings.options import fingerprinted
from uni_dpo.storage.writing import holding

ROWS = [{"id": str(at), "question": f"Digit {at}?", "answer": f"The digit is {at}."} for at in range(6)]


@register("backend", "scripted")
class ScriptedBackend:
    """Repeats the question's digit, but says 0 where it is even; stops like Ctrl-C after `batches` batches."""

    @dataclass(frozen=True)
    class Options:
        model: str
        says: str = "the digit is"

    batches: ClassVar[int] = 1_000
    failing: ClassVar[set[str]] = set()
    asked: ClassVar[list[Request]] = []

    def __init__(self, options: Options) -> None:
        self.usage = Usage()
        self.says = options.says

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        if not type(self).batches:
            raise KeyboardInterrupt
        type(self).batches -= 1
        self.asked.extend(requests)
        return [self._reply(request, sampling.n) for request in requests]

    def _reply(self, request: Request, count: int) -> list[Sample] | Failure:
        if request.prompt in self.failing:
            return Failure("timeout")
        digit = int(request.prompt[6])
        return [Sample(f"{self.says} {(digit + more) % 2 * (digit + more)}", 4, True) for more in range(count)]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`predict(rows)` answers rows in batches of two; returns the report and the rows written."""
    monkeypatch.setattr(ScriptedBackend, "batches", 1_000)
    monkeypatch.setattr(ScriptedBackend, "failing", set())
    monkeypatch.setattr(ScriptedBackend, "asked", [])

    def run(rows: list[dict[str, Any]], **settings: Any) -> tuple[PredictReport, list[dict[str, Any]]]:
        source, output = tmp_path / "questions.json", tmp_path / "answers.json"
        source.write_text(json.dumps(rows))
        report = predict_file(PredictSettings(source, output, "m", "scripted", batch_size=2, **settings))
        return report, json.loads(output.read_text())

    return run


def test_answers_stand_beside_labels(predict) -> None:
    """Right on 0, 1, 3 and 5."""
    report, rows = predict(ROWS)
    assert report.grades == ((1.0,), (1.0,), (0.0,), (1.0,), (0.0,), (1.0,))
    assert rows[2] == {
        "id": "2",
        "question": "Digit 2?",
        "images": [],
        "answer": "The digit is 2.",
        "prediction": "the digit is 0",
        "correct": 0.0,
    }


def test_more_about_the_model_reaches_it(predict, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, output = tmp_path / "q.json", tmp_path / "a.json"
    source.write_text(json.dumps(ROWS[3:4]))
    settings = PredictSettings(source, output, "m", backend="scripted", model_options={"says": "It is"})
    predict_command(settings)
    assert json.loads(output.read_text())[0]["prediction"] == "It is 3"
    with pytest.raises(UniDPOError, match=r"model_options\.say: .*says"):
        predict_command(replace(settings, model_options={"say": "It is"}))


def test_several_samples_give_a_mean_an_interval_and_pass_at_k(predict) -> None:
    """The first sample is right on 0, 1, 3 and 5; the second says 1, 0, 3, 0, 5, 0, so is never right."""
    report, rows = predict(ROWS, samples=2, temperature=1.0)
    assert rows[2]["predictions"] == ["the digit is 0", "the digit is 3"]
    assert (rows[1]["prediction"], rows[1]["grades"], rows[1]["correct"]) == ("the digit is 1", [1.0, 0.0], 0.5)
    lines = report.lines()
    # pass@1 = 4 · ½ / 6, pass@2 = 4 / 6.
    assert lines[-2:] == ["pass@1: 33.3%", "pass@2: 66.7%"]
    assert lines[-3].startswith("accuracy: 33.3% (2 of 6 with a label, mean of 2 samples; 95 % interval ")


def test_a_prompt_asks_in_its_own_words(predict, tmp_path: Path) -> None:
    asking = tmp_path / "ask.txt"
    asking.write_text("Digit?{question} Think first.")
    predict([{"question": "3"}], prompt=str(asking))
    assert [request.prompt for request in ScriptedBackend.asked] == ["Digit?3 Think first."]
    with pytest.raises(UniDPOError, match="no such file"):
        predict([{"question": "3?"}], prompt=str(tmp_path / "gone.txt"))


def test_without_labels_there_is_no_accuracy(predict) -> None:
    report, rows = predict([{"question": "Digit 3?"}])
    assert report.grades == ()
    assert rows[0]["prediction"] == "the digit is 3"
    assert "correct" not in rows[0]


def test_another_grader(predict) -> None:
    report, _ = predict([{"question": "Digit 3?", "answer": "3"}], grader="numeric")
    assert report.grades == ((1.0,),)


def test_a_stopped_run_goes_on_where_it_stopped(predict, tmp_path: Path) -> None:
    ScriptedBackend.batches = 2
    with pytest.raises(KeyboardInterrupt):
        predict(ROWS)
    assert not (tmp_path / "answers.json").exists()
    ScriptedBackend.batches = 1_000
    report, _ = predict(ROWS)
    assert report.rows == 6
    assert sorted(request.prompt for request in ScriptedBackend.asked) == [row["question"] for row in ROWS]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["answers.json", "questions.json"]


def test_what_a_server_did_not_answer_is_asked_again(predict, tmp_path: Path) -> None:
    ScriptedBackend.failing = {"Digit 4?"}
    with pytest.raises(UniDPOError, match="4: timeout"):
        predict(ROWS)
    assert not (tmp_path / "answers.json").exists()
    ScriptedBackend.failing = set()
    ScriptedBackend.asked.clear()
    predict(ROWS)
    assert [request.prompt for request in ScriptedBackend.asked] == ["Digit 4?"]


def test_without_a_question_that_is_refused_for_good_no_other_is_asked_again(predict) -> None:
    ScriptedBackend.failing = {"Digit 4?"}
    with pytest.raises(UniDPOError, match="without those that are refused for good; all other replies are kept"):
        predict(ROWS)
    ScriptedBackend.asked.clear()
    report, _ = predict([row for row in ROWS if row["question"] != "Digit 4?"])
    assert report.rows == 5
    assert ScriptedBackend.asked == []


def test_a_broken_image_is_named_before_a_model_is_loaded(predict, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    ScriptedBackend.batches = 0
    with pytest.raises(UniDPOError, match=r"row 0 .*broken\.png"):
        predict([{"id": "a", "question": "Digit 1?", "image": str(tmp_path / "broken.png")}])


def test_an_image_that_viewers_turn_is_named_in_the_report(predict, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    report, _ = predict([{"id": "a", "question": "Digit 1?", "image": str(tmp_path / "turned.jpg")}])
    assert report.lines()[0].startswith("warning: images with EXIF orientation: 1 (question a, image 0): ")


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("out.csv", r"'\.csv' are not written; .*\.json, \.jsonl, \.parquet"),
        ("out", "no file type"),
        ("f.json/x.json", ""),
    ],
)
def test_an_output_that_cannot_be_written_is_named_before_anything_is_asked(
    predict, tmp_path: Path, output: str, words: str
) -> None:
    (tmp_path / "f.json").write_text(json.dumps(ROWS))
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UniDPOError, match=words):
        predict_file(PredictSettings(tmp_path / "f.json", tmp_path / output, "m", "scripted"))
    assert not ScriptedBackend.asked
    assert sorted(tmp_path.iterdir()) == before


def test_references_that_no_grader_can_use_are_named_together_before_anything_is_asked(predict) -> None:
    rows = [{"id": str(at), "question": f"Digit {at}?", "options": ["x", "y"], "answer": "z"} for at in (1, 2, 3)]
    with pytest.raises(UniDPOError) as raised:
        predict([*rows, {"id": "4", "question": "Digit 4?", "options": ["x", "y"]}], grader="multiple_choice")
    found = str(raised.value)
    assert [f"row {row} (line 1): the reference 'z'" in found for row in range(4)] == [True, True, True, False]
    assert not ScriptedBackend.asked


def test_a_second_run_on_the_same_output_is_refused(predict, tmp_path: Path) -> None:
    with holding(tmp_path / "answers.json.answers.jsonl", "x"), pytest.raises(UniDPOError, match="another run"):
        predict(ROWS)
    assert not ScriptedBackend.asked


def test_answers_cut_at_the_limit_are_counted(predict, monkeypatch: pytest.MonkeyPatch) -> None:
    def generate(self: Any, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        return [[Sample("the digit", 4, request.prompt != "Digit 2?")] for request in requests]

    monkeypatch.setattr(ScriptedBackend, "generate", generate)
    report, _ = predict(ROWS)
    assert report.cut == 1
    assert any(line.startswith("answers cut at the limit of tokens: 1;") for line in report.lines())


def test_a_changed_question_is_asked_anew(predict) -> None:
    ScriptedBackend.batches = 2
    with pytest.raises(KeyboardInterrupt):
        predict(ROWS)
    ScriptedBackend.batches = 1_000
    ScriptedBackend.asked.clear()
    changed = [ROWS[0] | {"question": "Digit 7?"}, *ROWS[1:]]
    _, rows = predict(changed)
    assert rows[0]["prediction"] == "the digit is 7"
    assert [request.prompt for request in ScriptedBackend.asked] == ["Digit 7?", "Digit 4?", "Digit 5?"]


def test_another_image_under_an_old_name_is_asked_about_anew(predict, tmp_path: Path) -> None:
    rows = [row | {"images": [str(tmp_path / f"{row['id']}.png")]} for row in ROWS]
    for row in rows:
        Image.new("RGB", (32, 32), "red").save(row["images"][0])
    ScriptedBackend.batches = 2
    with pytest.raises(KeyboardInterrupt):
        predict(rows)
    ScriptedBackend.batches = 1_000
    ScriptedBackend.asked.clear()
    Image.new("RGB", (32, 32), "blue").save(rows[0]["images"][0])
    predict(rows)
    assert [request.prompt for request in ScriptedBackend.asked] == ["Digit 0?", "Digit 4?", "Digit 5?"]


def test_a_retrained_adapter_or_base_is_noticed(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Named:
        model: str
        adapter: str | None = None

    base, lora = tmp_path / "base", tmp_path / "lora"
    for folder, name in ((base, "model.safetensors"), (lora, "adapter_model.safetensors")):
        folder.mkdir()
        (folder / name).write_bytes(b"1")
    (base / "config.json").write_text("{}")
    (lora / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    beside, alone = Named(str(base), str(lora)), Named(str(lora))
    before = weights_of(beside), weights_of(alone)
    assert [len(stamps) for stamps in before] == [2, 2]
    (base / "model.safetensors").write_bytes(b"22")
    after = weights_of(beside), weights_of(alone)
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert weights_of(Named("a/name-on-the-hub")) == []


def test_a_setting_that_came_later_leaves_old_fingerprints_as_they_are() -> None:
    old = {"n": 1, "temperature": 0, "top_p": 1.0, "top_k": 0, "max_tokens": 5}
    assert fingerprinted(Sampling(temperature=0, max_tokens=5)) == old
    assert fingerprinted(Sampling(temperature=0, max_tokens=5, repetition_penalty=1.1)) != old


def test_a_system_prompt_reaches_the_model_and_is_part_of_what_was_asked(predict) -> None:
    ScriptedBackend.batches = 1
    with pytest.raises(KeyboardInterrupt):
        predict(ROWS)
    ScriptedBackend.batches = 1_000
    ScriptedBackend.asked.clear()
    predict(ROWS, system="Be brief.")
    assert [request.system for request in ScriptedBackend.asked] == ["Be brief."] * 6


def test_videos_are_shown_where_the_backend_shows_them(
    predict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = tmp_path / "frame.png"
    Image.new("RGB", (40, 30)).save(frame)
    filmed = [ROWS[0], ROWS[1] | {"videos": [["frame.png", "frame.png"]]}]
    with pytest.raises(UniDPOError, match=r"row 1 .*'videos': a video as .*, which the backend scripted does not show"):
        predict(filmed)
    assert not ScriptedBackend.asked
    monkeypatch.setattr(ScriptedBackend.Options, "shows_videos", ("frames",), raising=False)
    _, rows = predict(filmed)
    assert [request.videos for request in ScriptedBackend.asked] == [(), ((str(frame),) * 2,)]
    assert ["videos" in row for row in rows] == [False, True]
    assert rows[1]["videos"] == [[str(frame)] * 2]
