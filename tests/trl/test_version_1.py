"""TRL 1.x: prompt and answer come joined, and the fused head gives the log-probabilities."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from uni_dpo.errors import UniDPOError
from uni_dpo.trl import UniDPOTrainer

if hasattr(UniDPOTrainer, "concatenated_forward"):
    pytest.skip("another TRL is installed", allow_module_level=True)

from uni_dpo.trl.version_1 import JoinedTextPairCollator, JoinedVisionPairCollator

Settings = Callable[..., Any]
Rows = list[dict[str, Any]]


def test_scores_come_from_their_columns_into_the_batch() -> None:
    row = {"prompt_ids": [5, 6], "chosen_ids": [7], "rejected_ids": [8, 9], "good": 4, "bad": 1.5}
    batch = JoinedTextPairCollator(pad_token_id=0, columns=("good", "bad"))([row, row | {"good": 3.0}])
    assert batch["score_chosen"].tolist() == [4.0, 3.0]
    assert batch["score_rejected"].tolist() == [1.5, 1.5]
    assert "score_chosen" not in JoinedTextPairCollator(pad_token_id=0)([row])
    with pytest.raises(UniDPOError, match=r"bad: .* not all finite"):
        JoinedTextPairCollator(pad_token_id=0, columns=("good", "bad"))([row, row | {"bad": None}])


@pytest.fixture(scope="module")
def processor(tiny_qwen2_vl: Path) -> Any:
    from transformers import AutoProcessor

    return AutoProcessor.from_pretrained(tiny_qwen2_vl)


def row(digits: dict[str, list[Any]], images: int) -> dict[str, Any]:
    """A row of texts, of which each image is 4 tokens."""
    prompt = "<|vision_start|><|image_pad|><|vision_end|>" * images + "Which?"
    paths = [str(digit.image) for digit in digits["preference"][:images]]
    return {"prompt": prompt, "images": paths, "chosen": "yes", "rejected": "no no"}


def test_prompts_with_any_number_of_images_share_a_batch(
    processor: Any, digits: dict[str, list[Any]], pairs_in: Callable[..., Any]
) -> None:
    collate = JoinedVisionPairCollator(processor=processor)
    batch = collate([row(digits, 2), row(digits, 0), row(digits, 1)])
    image = processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
    pairs = pairs_in(batch)
    assert [int((pair.prompt == image).sum()) for pair in pairs] == [8, 0, 4]
    assert batch["image_grid_thw"].tolist() == [[1, 4, 4]] * 6, "once for the chosen answers, once for the rejected"
    assert (batch["mm_token_type_ids"] == (batch["input_ids"] == image)).all()
    end = processor.tokenizer.eos_token_id
    assert {int(answer[-1]) for pair in pairs for answer in (pair.chosen, pair.rejected)} == {end}
    assert "pixel_values" not in collate([row(digits, 0)])


def test_a_prompt_that_does_not_fit_is_refused_before_its_images_are_cut(
    processor: Any, digits: dict[str, list[Any]]
) -> None:
    with pytest.raises(UniDPOError, match="max_length is 9"):
        JoinedVisionPairCollator(processor=processor, max_length=9)([row(digits, 2)])


def test_an_image_that_is_no_image_is_named(processor: Any, digits: dict[str, list[Any]], tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UniDPOError, match=r"text\.png cannot be read"):
        JoinedVisionPairCollator(processor=processor)([row(digits, 1) | {"images": [str(tmp_path / "text.png")]}])


@pytest.mark.parametrize("left", [3, 9])
def test_averages_count_the_tokens_that_a_cut_leaves(
    tiny_text: Path, text_rows: Rows, settings: Settings, left: int, step: Callable[..., Any]
) -> None:
    """An indifferent model gives every token log(1/vocabulary): so does the average over any number of tokens."""
    trainer = UniDPOTrainer(str(tiny_text), args=settings(), train_dataset=Dataset.from_list(text_rows))
    longest = max(len(ids) for ids in trainer.train_dataset["prompt_ids"])
    trainer.data_collator.max_length = longest + left
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
