"""TRL 0.24: its batches keep prompts and answers apart, and its cut is made after collating."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from uni_dpo.errors import UniDPOError
from uni_dpo.trl import UniDPOTrainer

if not hasattr(UniDPOTrainer, "concatenated_forward"):
    pytest.skip("another TRL is installed", allow_module_level=True)

from uni_dpo.trl.version_0_24 import ScoredTextPairCollator, ScoredVisionPairCollator

Settings = Callable[..., Any]
Rows = list[dict[str, Any]]


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


@pytest.mark.parametrize("mode", ["keep_start", "keep_end"])
@pytest.mark.parametrize("left", [3, 9])
def test_averages_count_the_tokens_that_a_cut_leaves(
    tiny_text: Path, text_rows: Rows, settings: Settings, mode: str, left: int
) -> None:
    """An indifferent model gives every token log(1/vocabulary): so does the average over any number of tokens."""
    config = settings(truncation_mode=mode)
    trainer = UniDPOTrainer(str(tiny_text), args=config, train_dataset=Dataset.from_list(text_rows))
    for parameter in trainer.model.parameters():
        parameter.data.zero_()
    batch = next(iter(trainer.get_train_dataloader()))
    prompt = int(batch["prompt_attention_mask"].sum(1).max())
    trainer.max_length = left if mode == "keep_end" else prompt + left
    with torch.no_grad():
        output = trainer.concatenated_forward(trainer.model, batch)
    uniform = -torch.tensor(float(trainer.model.config.vocab_size)).log()
    for side in ("chosen", "rejected"):
        torch.testing.assert_close(output[f"{side}_logps"], uniform.expand(4), rtol=1e-5, atol=0)
