"""Questions in, answers beside labels out, with a scripted model."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from uni_dpo.engine import Failure, Request, Sample, Sampling, Usage, register
from uni_dpo.errors import UniDPOError
from uni_dpo.inference.predict import PredictReport, predict_file

ROWS = [{"id": str(at), "question": f"Digit {at}?", "answer": f"The digit is {at}."} for at in range(6)]


@register("backend", "scripted")
class ScriptedBackend:
    """Repeats the question's digit, but says 0 where it is even; stops like Ctrl-C after `batches` batches."""

    @dataclass(frozen=True)
    class Options:
        model: str

    batches: ClassVar[int] = 1_000
    failing: ClassVar[set[str]] = set()
    asked: ClassVar[list[Request]] = []

    def __init__(self, options: Options) -> None:
        self.usage = Usage()

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        if not type(self).batches:
            raise KeyboardInterrupt
        type(self).batches -= 1
        self.asked.extend(requests)
        return [
            Failure("timeout")
            if request.prompt in self.failing
            else [Sample(f"the digit is {int(request.prompt[6]) % 2 * int(request.prompt[6])}", 4, True)]
            for request in requests
        ]


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """`predict(rows)` answers rows in batches of two; returns the report and the rows written."""
    monkeypatch.setattr(ScriptedBackend, "batches", 1_000)
    monkeypatch.setattr(ScriptedBackend, "failing", set())
    monkeypatch.setattr(ScriptedBackend, "asked", [])

    def run(rows: list[dict[str, Any]], **settings: Any) -> tuple[PredictReport, list[dict[str, Any]]]:
        source, output = tmp_path / "questions.json", tmp_path / "answers.json"
        source.write_text(json.dumps(rows))
        report = predict_file(
            source,
            output,
            {"backend": "scripted", "model": "m"},
            sampling=Sampling(temperature=0),
            batch_size=2,
            **settings,
        )
        return report, json.loads(output.read_text())

    return run


def test_answers_stand_beside_labels(predict) -> None:
    """Right on 0, 1, 3 and 5."""
    report, rows = predict(ROWS)
    assert report.accuracy == pytest.approx(4 / 6)
    assert rows[2] == {
        "id": "2",
        "question": "Digit 2?",
        "images": [],
        "answer": "The digit is 2.",
        "prediction": "the digit is 0",
        "correct": 0.0,
    }


def test_without_labels_there_is_no_accuracy(predict) -> None:
    report, rows = predict([{"question": "Digit 3?"}])
    assert report.accuracy is None
    assert rows[0]["prediction"] == "the digit is 3"
    assert "correct" not in rows[0]


def test_another_grader(predict) -> None:
    report, _ = predict([{"question": "Digit 3?", "answer": "3"}], grader="numeric")
    assert report.accuracy == 1


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


def test_a_broken_image_is_named_before_a_model_is_loaded(predict, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_text("no image")
    ScriptedBackend.batches = 0
    with pytest.raises(UniDPOError, match=r"question a, image 0.*broken\.png"):
        predict([{"id": "a", "question": "Digit 1?", "image": str(tmp_path / "broken.png")}])
