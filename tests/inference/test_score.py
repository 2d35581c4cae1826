"""Files in, files out: what is added, what is kept, what is refused, and going on after a stop."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.inference import score as run
from uni_dpo.inference.score import score_file
from uni_dpo.inference.settings import ScoreSettings
from uni_dpo.models.rewards.options import Conversation, RewardCheckpoint

ROWS = [
    {"id": at, "instruction": f"Question {at % 3}?", "chosen": "yes" * (at + 1), "rejected": "no", "note": "kept"}
    for at in range(5)
]


class LengthModel:
    """Rates an answer by its length; stops like Ctrl-C after so many batches."""

    def __init__(self, batches: int = 1_000) -> None:
        self.batches = batches
        self.rated: list[Conversation] = []

    def rate(self, conversations: Sequence[Conversation]) -> list[float]:
        if not self.batches:
            raise KeyboardInterrupt
        self.batches -= 1
        self.rated += conversations
        return [float(len(conversation.answer)) for conversation in conversations]


@pytest.fixture
def score(monkeypatch: pytest.MonkeyPatch, classifier: Path, tmp_path: Path):
    """`score(rows, model)` rates rows with a model in place of the classifier's; returns the rows written."""

    def rate(rows: list[dict[str, Any]], model: LengthModel, **settings: Any) -> list[dict[str, Any]]:
        monkeypatch.setattr(run, "load_reward_model", lambda options: model)
        source, output = tmp_path / "rows.json", tmp_path / "rated.json"
        source.write_text(json.dumps(rows))
        score_file(ScoreSettings(classifier, source=source, output=output, batch_size=2, **settings))
        return json.loads(output.read_text())

    return rate


def test_pairs_keep_their_columns_and_order_and_get_scores(score) -> None:
    rated = score(ROWS, LengthModel())
    assert rated == [row | {"score_chosen": float(len(row["chosen"])), "score_rejected": 2.0} for row in ROWS]


def test_scores_go_where_the_file_has_scores(score) -> None:
    rated = score([{"prompt": "A?", "chosen": "yes", "rejected": "no", "chosen_rating": 9}], LengthModel())
    assert rated[0]["chosen_rating"] == 3.0


def test_the_same_conversation_is_rated_once(score) -> None:
    model = LengthModel()
    score(ROWS + ROWS, model)
    assert len(model.rated) == len(set(model.rated)) == 5 + 3  # five chosen answers; "no" to three questions


def test_answers_get_a_score_and_lists_get_scores(score) -> None:
    assert score([{"question": "A?", "answer": "right", "prediction": "four"}], LengthModel())[0]["score"] == 4.0
    assert score([{"question": "A?", "answers": ["a", "bcd"]}], LengthModel())[0]["scores"] == [1.0, 3.0]
    rated = score([{"question": "A?", "said": "four"}], LengthModel(), answer_column="said")
    assert rated[0]["score"] == 4.0


def test_a_stopped_run_goes_on_where_it_stopped(score, tmp_path: Path) -> None:
    first, second = LengthModel(batches=2), LengthModel()
    with pytest.raises(KeyboardInterrupt):
        score(ROWS, first)
    assert not (tmp_path / "rated.json").exists()
    rated = score(ROWS, second)
    assert len(first.rated) == 4
    assert len(second.rated) == 4
    assert not set(first.rated) & set(second.rated)
    assert [row["score_chosen"] for row in rated] == [3.0, 6.0, 9.0, 12.0, 15.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rated.json", "rows.json"]


def test_the_report_counts_agreement(tmp_path: Path, score, monkeypatch, classifier: Path) -> None:
    """Lengths 3, 6, … against 2, and one pair whose rejected answer is the longer: 5 of 6 agree; median 7.5."""
    monkeypatch.setattr(run, "load_reward_model", lambda options: LengthModel())
    (tmp_path / "in.json").write_text(json.dumps([*ROWS, {"instruction": "B?", "chosen": "a", "rejected": "abc"}]))
    report = score_file(ScoreSettings(classifier, source=tmp_path / "in.json", output=tmp_path / "out.json"))
    assert report.agreement == pytest.approx(5 / 6)
    assert report.median == 7.5


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"instruction": "A?", "chosen": None, "rejected": "no"}, r"row 1\b.*chosen: null"),
        (
            {"instruction": "<image>A?", "chosen": "a", "rejected": "b", "images": ["gone.png"]},
            r"row 1\b.*gone",
        ),
    ],
)
def test_bad_rows_are_named_before_a_model_is_loaded(score, monkeypatch, row: dict[str, Any], words: str) -> None:
    model = LengthModel(batches=0)
    with pytest.raises(UniDPOError, match=words):
        score([ROWS[0], row], model)


def test_bad_answers_are_named(score) -> None:
    with pytest.raises(UniDPOError, match=r"row 1\b.*answer: None"):
        score([{"question": "A?", "answer": "a"}, {"question": "B?", "answer": None}], LengthModel(batches=0))
    with pytest.raises(UniDPOError, match="hold no answer"):
        score([{"question": "A?"}], LengthModel(batches=0))


def test_images_for_a_classifier_are_refused_by_row(score, digits) -> None:
    row = {"question": "<image>A?", "answer": "a", "image": str(digits["train"][0].image)}
    with pytest.raises(UniDPOError, match=r"row 1\b.*images: a classifier sees no images"):
        score([{"question": "A?", "answer": "a"}, row], LengthModel(batches=0))


def test_paths_lead_from_the_output_to_the_same_images(tmp_path: Path, monkeypatch, digits) -> None:
    monkeypatch.setattr(run, "load_reward_model", lambda options: LengthModel())
    monkeypatch.setattr(run, "find_reward_checkpoint", lambda options: RewardCheckpoint("value_head", ""))
    image = digits["train"][0].image
    source = tmp_path / "rows.json"
    shutil.copy(image, tmp_path)
    source.write_text(json.dumps([{"question": "<image>A?", "answer": "a", "image": image.name}]))
    for root, written in ((None, f"../{image.name}"), (tmp_path, image.name)):
        output = tmp_path / "new" / "rated.json"
        score_file(ScoreSettings(tmp_path, source=source, output=output, image_root=root))
        assert json.loads(output.read_text())[0]["image"] == written


def test_the_input_is_never_written_over(tmp_path: Path, classifier: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(ROWS))
    with pytest.raises(UniDPOError, match="is what is read"):
        score_file(ScoreSettings(classifier, source=tmp_path / "in.json", output=tmp_path / "in.json"))


def test_an_output_that_cannot_be_written_is_named_before_the_rating(tmp_path: Path, classifier: Path) -> None:
    (tmp_path / "in.json").write_text(json.dumps(ROWS))
    with pytest.raises(UniDPOError, match=r"'\.csv' are not written"):
        score_file(ScoreSettings(classifier, source=tmp_path / "in.json", output=tmp_path / "out.csv"))
    assert [path.name for path in tmp_path.iterdir()] == ["in.json"]


def test_a_model_that_rates_with_no_numbers_is_named(score, tmp_path: Path) -> None:
    model = LengthModel()
    model.rate = lambda conversations: [float("nan")] * len(conversations)  # type: ignore[method-assign]
    with pytest.raises(UniDPOError, match="its ratings are"):
        score(ROWS, model)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.json"]
