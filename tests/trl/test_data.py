"""Scores and images: what is at fault is named, what is good reaches the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from datasets import Dataset, Image, List, Value

from uni_dpo.errors import UniDPOError
from uni_dpo.trl.data import (
    ScoredPairs,
    as_messages,
    check_images,
    check_pairs,
    check_places,
    check_scores,
    first_chosen,
    refuse_videos,
    with_image_lists,
)

COLUMNS = ("score_chosen", "score_rejected")


@pytest.mark.parametrize("value", [None, float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_named(value: Any) -> None:
    data = Dataset.from_dict({"score_chosen": [1.0, 2.0, value], "score_rejected": [0.0, 0.0, 0.0]})
    with pytest.raises(UniDPOError, match=r"eval dataset, row 2, score_chosen.*1 of 3 rows"):
        check_scores(data, COLUMNS, "eval")


def test_a_missing_column_is_named_with_those_that_are_there() -> None:
    data = Dataset.from_dict({"rating": [1.0], "score_rejected": [0.0]})
    with pytest.raises(UniDPOError, match="'score_chosen'; it has rating, score_rejected"):
        check_scores(data, COLUMNS)
    check_scores(data, ("rating", "score_rejected"))


def test_an_image_that_no_processor_takes_is_named_before_training(tmp_path: Path) -> None:
    import datasets

    from uni_dpo.trl.data import check_images

    for name, size in (("good", (40, 30)), ("edge", (2000, 10)), ("long", (2001, 10))):
        PIL.Image.new("RGB", size).save(tmp_path / f"{name}.png")
    rows = [{"images": [str(tmp_path / f"{name}.png")]} for name in ("good", "edge", "long")]
    paths = datasets.Dataset.from_list(rows)
    decoded = paths.cast_column("images", datasets.Sequence(datasets.Image()))
    for dataset in (paths, decoded):
        check_images(dataset.select([0, 1]))
        with pytest.raises(UniDPOError, match="the train dataset, row 2, image 1 has 2001 × 10 pixels"):
            check_images(dataset)
    with pytest.raises(UniDPOError, match="the eval dataset, row 0, image 1 cannot be read"):
        check_images(datasets.Dataset.from_list([{"images": [str(tmp_path / "none.png")]}]), "eval")


def test_an_image_that_datasets_turns_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from uni_dpo.trl import data

    said: list[str] = []
    monkeypatch.setattr(data.logger, "warning", lambda line, *parts: said.append(line % parts))
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    PIL.Image.new("RGB", (40, 30)).save(tmp_path / "turned.jpg", exif=exif)
    paths = datasets.Dataset.from_list([{"images": [str(tmp_path / "turned.jpg")]}])
    for dataset in (paths, paths.cast_column("images", datasets.Sequence(datasets.Image()))):
        data.check_images(dataset)
    assert len(said) == 2
    assert said[0].startswith("the train dataset: images with EXIF orientation: 1 (row 0, image 1): ")


def test_scores_come_from_their_columns_into_the_batch() -> None:
    rows = [{"good": 4, "bad": 1.5}, {"good": 3.0, "bad": 1.5}]
    batch = ScoredPairs(lambda examples: {"rows": len(examples)}, ("good", "bad"))(rows)
    assert batch["rows"] == 2
    assert batch["score_chosen"].tolist() == [4.0, 3.0]
    assert batch["score_rejected"].tolist() == [1.5, 1.5]
    assert ScoredPairs(lambda examples: {})(rows) == {}
    with pytest.raises(UniDPOError, match=r"bad: .* not all finite"):
        ScoredPairs(lambda examples: {}, ("good", "bad"))([*rows, {"good": 1.0, "bad": None}])


def test_a_prompt_that_does_not_fit_is_refused_before_its_images_are_cut(
    collator: Callable[..., Any], row: Callable[[int], dict[str, Any]]
) -> None:
    with pytest.raises(UniDPOError, match="max_length is 9"):
        collator(9)([row(2)])


def test_an_image_that_is_no_image_is_named(
    collator: Callable[..., Any], row: Callable[[int], dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UniDPOError, match=r"text\.png cannot be read"):
        collator()([row(1) | {"images": [str(tmp_path / "text.png")]}])


def test_videos_are_refused_since_trl_shows_none() -> None:
    refuse_videos(Dataset.from_dict({"prompt": ["a"], "videos": [None]}))
    with pytest.raises(UniDPOError, match="the eval dataset has videos in its column 'videos'"):
        refuse_videos(Dataset.from_dict({"prompt": ["a"], "videos": [["film.mp4"]]}), "eval")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"instruction": "q", "chosen": "A cat.", "rejected": "A dog."},
            "TRL would not read 'instruction'",
        ),
        ({"question": "q", "chosen": [{"role": "assistant", "content": "a"}]}, "would not read 'question'"),
        ({"prompt": "q", "chosen": "a", "rejected": None}, "row 0, rejected: is empty"),
        ({"prompt": "q", "chosen": " ", "rejected": "b"}, "row 0, chosen: is empty"),
        ({"prompt": None, "chosen": "a", "rejected": "b"}, "row 0, prompt: is empty"),
        ({"prompt": [], "chosen": "a", "rejected": "b"}, "row 0, prompt: is empty"),
        (
            {"prompt": "q", "chosen": {"role": "assistant", "content": "a"}, "rejected": {}},
            "row 0, chosen: holds one mess",
        ),
        ({"prompt": "q", "system": "s", "chosen": "a", "rejected": "b"}, "row 0, system: TRL would not read it"),
    ],
)
def test_no_pair_loses_its_question_or_an_answer(row: dict[str, Any], message: str) -> None:
    with pytest.raises(UniDPOError, match=message):
        check_pairs(Dataset.from_list([row]))


def test_an_image_that_is_not_there_is_named_although_the_first_row_is_looked_at(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "images": [{"bytes": None, "path": str(tmp_path / "x.png")}]}
    rows = Dataset.from_list([row]).cast_column("images", List(Image()))
    for dataset in (rows, rows.to_iterable_dataset()):
        check_pairs(dataset)
        assert first_chosen(dataset) == "a"
    with pytest.raises(UniDPOError, match=r"the train dataset, row 0, image 1 cannot be read: .*x\.png"):
        check_images(rows)


@pytest.mark.parametrize("kind", [Image(), Value("string")])
@pytest.mark.parametrize("column", ["image", "images"])
def test_one_image_becomes_a_list_of_images_unopened(kind: Any, column: str) -> None:
    stored = {"bytes": b"broken", "path": None} if isinstance(kind, Image) else "a.png"
    rows = Dataset.from_list([{"prompt": "q", column: stored}, {"prompt": "q", column: None}])
    made = with_image_lists(rows.cast_column(column, kind))
    shown = Image(decode=False) if isinstance(kind, Image) else kind
    assert made.features["images"] == List(kind)
    assert made.cast_column("images", List(shown))["images"][:] == [[stored], []]
    assert with_image_lists(made) is made


def test_a_question_may_stand_in_both_answers() -> None:
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    check_pairs(Dataset.from_list([{"chosen": turns, "rejected": turns, "instruction": "q"}]))
    check_pairs(Dataset.from_list([{"chosen": "The sky is blue.", "rejected": "The sky is green."}]))


PART = {"type": "image", "text": None}


def asked(*parts: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*parts, {"type": "text", "text": "What?"}]}]


@pytest.mark.parametrize(
    ("prompt", "images", "places"),
    [
        (asked(PART), ["a.png"], None),
        (asked(), [], None),
        (asked(), None, None),
        ("<|image_pad|>What?", ["a.png"], None),
        ("<image>What?", ["a.png"], "0 places for images, `images` holds 1"),
        (asked(PART), ["a.png", "b.png"], "1 places for images, `images` holds 2"),
        (asked(PART), None, "1 places for images, `images` holds 0"),
        (asked(PART, {"type": "text", "text": "<|image_pad|>"}), ["a.png"], "2 places"),
        ([{"role": "user", "content": "What?"}], ["a.png"], "0 places"),
    ],
)
def test_every_image_has_its_place_in_the_prompt(prompt: Any, images: Any, places: str | None) -> None:
    data = Dataset.from_list([{"prompt": prompt, "images": images}])
    check_places(data, None)
    if places is None:
        check_places(data, "<|image_pad|>")
        return
    with pytest.raises(UniDPOError, match=f"row 0: its prompt has {places}"):
        check_places(data, "<|image_pad|>")


def test_trl_1_puts_images_before_plain_messages_itself() -> None:
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": "What?"}], "images": ["a.png"]}])
    check_places(data, "<|image_pad|>", added=True)


def test_questions_with_a_list_of_images_show_them_all() -> None:
    row = {"question": "Same?", "chosen": "Yes", "rejected": "No", "images": ["a.png", "b.png"]}
    made = as_messages(Dataset.from_list([row]))
    check_places(made, "<|image_pad|>")
    assert made[0]["images"] == ["a.png", "b.png"]
