"""Scores and images: what is at fault is named, what is good reaches the batch."""

from pathlib import Path
from typing import Any

import PIL.Image
import pytest
from datasets import Dataset

from uni_dpo.errors import UniDPOError
from uni_dpo.trl import UniDPOTrainer
from uni_dpo.trl.data import ScoredTextPairCollator, ScoredVisionPairCollator, check_scores

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


def test_scores_come_from_their_columns_into_the_batch() -> None:
    row = {"prompt_input_ids": [5, 6], "chosen_input_ids": [7], "rejected_input_ids": [8, 9], "good": 4, "bad": 1.5}
    batch = ScoredTextPairCollator(0, ("good", "bad"))([row, row | {"good": 3.0}])
    assert batch["score_chosen"].tolist() == [4.0, 3.0]
    assert batch["score_rejected"].tolist() == [1.5, 1.5]
    assert "score_chosen" not in ScoredTextPairCollator(0, None)([row])
    with pytest.raises(UniDPOError, match=r"bad: .* not all finite"):
        ScoredTextPairCollator(0, ("good", "bad"))([row, row | {"bad": None}])


@pytest.fixture(scope="module")
def processor(tiny_qwen2_vl: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_qwen2_vl)


def row(digits: dict[str, list[Any]], images: int) -> dict[str, Any]:
    prompt = "<|vision_start|><|image_pad|><|vision_end|>" * images + "Which?"
    paths = [str(digit.image) for digit in digits["preference"][:images]]
    return {"prompt": prompt, "images": paths, "chosen_input_ids": [7], "rejected_input_ids": [8, 9]}


def test_prompts_with_any_number_of_images_share_a_batch(processor: Any, digits: dict[str, list[Any]]) -> None:
    """Each image is 4 tokens; prompts are padded on the left, answers on the right."""
    collate = ScoredVisionPairCollator(processor, 0, None)
    batch = collate([row(digits, 2), row(digits, 0), row(digits, 1) | {"images": [digits["preference"][0].image]}])
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (batch["prompt_input_ids"] == image).sum(1).tolist() == [8, 0, 4]
    assert batch["prompt_attention_mask"][:, -1].tolist() == [1, 1, 1]
    assert batch["prompt_attention_mask"][1, 0] == 0
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] * 3
    assert batch["chosen_attention_mask"].tolist() == [[1]] * 3
    assert batch["rejected_input_ids"].tolist() == [[8, 9]] * 3
    assert "pixel_values" not in collate([row(digits, 0)])


def test_a_prompt_that_does_not_fit_is_refused_before_its_images_are_cut(
    processor: Any, digits: dict[str, list[Any]]
) -> None:
    with pytest.raises(UniDPOError, match="max_length is 9"):
        ScoredVisionPairCollator(processor, 0, None, max_length=9)([row(digits, 2)])


def test_an_image_that_is_no_image_is_named(processor: Any, digits: dict[str, list[Any]], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UniDPOError, match=r"text\.png cannot be read"):
        ScoredVisionPairCollator(processor, 0, None)([row(digits, 1) | {"images": [str(tmp_path / "text.png")]}])


def test_trl_calls_our_way_of_tokenizing_a_row_with_images(processor: Any) -> None:
    row = {"chosen": "yes", "rejected": "no no"}
    eos = processor.tokenizer.eos_token_id
    assert UniDPOTrainer.process_row(row, processor)["chosen_input_ids"][-1] == eos
    assert len(UniDPOTrainer.process_row(row, processor, max_completion_length=2)["rejected_input_ids"]) == 2


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
