"""TRL 1.x: prompt and answer come joined, and the fused head gives the log-probabilities."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from uni_dpo.trl import UniDPOTrainer

if hasattr(UniDPOTrainer, "concatenated_forward"):
    pytest.skip("another TRL is installed", allow_module_level=True)

Settings = Callable[..., Any]
Rows = list[dict[str, Any]]


def test_prompts_with_any_number_of_images_share_a_batch(
    collator: Callable[..., Any],
    processor: Any,
    row: Callable[[int], dict[str, Any]],
    pairs_in: Callable[..., Any],
) -> None:
    collate = collator()
    batch = collate([row(2), row(0), row(1)])
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    pairs = pairs_in(batch)
    assert [int((pair.prompt == image).sum()) for pair in pairs] == [8, 0, 4]
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] * 6, "once for the chosen answers, once for the rejected"
    assert (batch["mm_token_type_ids"] == (batch["input_ids"] == image)).all()
    end = processor.tokenizer.eos_token_id
    assert {int(answer[-1]) for pair in pairs for answer in (pair.chosen, pair.rejected)} == {end}
    assert "pixel_values" not in collate([row(0)])


@pytest.mark.parametrize("left", [3, 9])
def test_averages_count_the_tokens_that_a_cut_leaves(
    tiny_text: Path, text_rows: Rows, settings: Settings, left: int, step: Callable[..., Any]
) -> None:
    """An indifferent model gives every token log(1/vocabulary): so does the average over any number of tokens."""
    trainer = UniDPOTrainer(str(tiny_text), args=settings(), train_dataset=Dataset.from_list(text_rows))
    longest = max(len(ids) for ids in trainer.train_dataset["prompt_ids"])
    trainer.data_collator.collate.max_length = longest + left
    for parameter in trainer.model.parameters():
        parameter.data.zero_()
    _, logged = step(trainer, trainer.model, next(iter(trainer.get_train_dataloader())))
    uniform = -torch.tensor(float(trainer.model.config.vocab_size)).log().item()
    assert logged["logps/chosen"] == pytest.approx(uniform, rel=1e-5)
    assert logged["logps/rejected"] == pytest.approx(uniform, rel=1e-5)


def test_tokens_past_the_shorter_answer_weigh_ld_alpha(
    tiny_text: Path, text_rows: Rows, settings: Settings, pairs_in: Callable[..., Any]
) -> None:
    """Summed, an indifferent model's answers of n and m tokens have log(1/V) · (min + α · (n − min))."""
    config = settings(ld_alpha=0.25, average_log_prob=False)
    trainer = UniDPOTrainer(str(tiny_text), args=config, train_dataset=Dataset.from_list(text_rows))
    for parameter in trainer.model.parameters():
        parameter.data.zero_()
    batch = next(iter(trainer.get_train_dataloader()))
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    labels = batch["input_ids"].masked_fill(batch["completion_mask"] == 0, -100)
    with torch.no_grad(), trainer._answer_logps(batch["completion_mask"]) as found:
        trainer.model(**inputs, labels=labels, fused_lm_head=True)
    uniform = -torch.tensor(float(trainer.model.config.vocab_size)).log()
    lengths = [(len(pair.chosen), len(pair.rejected)) for pair in pairs_in(batch)]
    for side in (0, 1):
        expected = [min(pair) + 0.25 * (pair[side] - min(pair)) for pair in lengths]
        torch.testing.assert_close(found[0].chunk(2)[side], uniform * torch.tensor(expected))
    assert any(chosen != rejected for chosen, rejected in lengths)


def test_a_model_in_memory_is_its_own_reference(tiny_text: Path, text_rows: Rows, settings: Settings) -> None:
    """TRL loads the reference again by name; what was trained in memory since is not there."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_text, dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    trainer = UniDPOTrainer(model, args=settings(), train_dataset=Dataset.from_list(text_rows))
    trainer.train()
    assert trainer.state.log_history[0]["rewards/margins"] == 0.0
