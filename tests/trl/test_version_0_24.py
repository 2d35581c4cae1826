"""TRL 0.24: its batches keep prompts and answers apart, and its cut is made after collating."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from uni_dpo.trl import UniDPOTrainer

if not hasattr(UniDPOTrainer, "concatenated_forward"):
    pytest.skip("another TRL is installed", allow_module_level=True)

Settings = Callable[..., Any]
Rows = list[dict[str, Any]]


def test_prompts_with_any_number_of_images_share_a_batch(
    collator: Callable[..., Any], processor: Any, row: Callable[[int], dict[str, Any]]
) -> None:
    """Each image is 4 tokens; prompts are padded on the left, answers on the right."""
    collate = collator()
    batch = collate([row(2), row(0), row(1)])
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    assert (batch["prompt_input_ids"] == image).sum(1).tolist() == [8, 0, 4]
    assert batch["prompt_attention_mask"][:, -1].tolist() == [1, 1, 1]
    assert batch["prompt_attention_mask"][1, 0] == 0
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] * 3
    assert batch["chosen_attention_mask"].tolist() == [[1]] * 3
    assert batch["rejected_input_ids"].tolist() == [[8, 9]] * 3
    assert "pixel_values" not in collate([row(0)])


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
