"""Scores and images: what is at fault is named, what is good reaches the batch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from datasets import Dataset

from uni_dpo.errors import UniDPOError
from uni_dpo.trl.data import ScoredPairs, check_scores, refuse_videos

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
