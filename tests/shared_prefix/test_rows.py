"""Answers to one prompt as one sequence against each in its own row: hidden states, gradients, what is not shared."""

from typing import Any

import pytest
import torch
from families import GRID_FAMILIES, IMAGE, TEXT_FAMILIES, VISION_END, VISION_START, tiny_model
from torch import Tensor

from uni_dpo.shared_prefix.rows import share_rows, shares_rows, sharing_rows


def a_batch(model: Any, prompts: list[tuple[list[int], int]], answers: list[list[int]], *, left: bool) -> Any:
    """Rows of (words, number of an image, 0 for none) and answers, padded on the left of the prompts or behind all."""
    draw = torch.Generator().manual_seed(7)
    vision = getattr(model.config, "vision_config", None)
    patch = 3 * 2 * vision.patch_size**2 if vision else 0
    pixels = {image: torch.randn(16, patch, generator=draw) for image in (1, 2)}
    whole = [[*([VISION_START, *[IMAGE] * 4, VISION_END] if image else []), *words] for words, image in prompts]
    before, after = max(map(len, whole)), max(map(len, answers))
    ids = torch.zeros(len(whole), before + after, dtype=torch.long)
    mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(whole, answers, strict=True)):
        start = before - len(prompt) if left else 0
        end = start + len(prompt) + len(answer)
        ids[row, start:end] = torch.tensor([*prompt, *answer])
        mask[row, start:end] = 1
        scored[row, start + len(prompt) : end] = True
    inputs = {"input_ids": ids, "attention_mask": mask}
    shown = [image for _, image in prompts if image]
    if shown:
        inputs["pixel_values"] = torch.cat([pixels[image] for image in shown])
        inputs["image_grid_thw"] = torch.tensor([[1, 4, 4]] * len(shown))
        inputs["mm_token_type_ids"] = (ids == IMAGE).int()
    return inputs, scored


def states(model: Any, inputs: dict[str, Any], scored: Tensor) -> tuple[Tensor, Tensor]:
    """Hidden states of the scored positions, row by row and shared."""
    model.config.get_text_config()._attn_implementation = "sdpa"
    alone = model.model(**inputs, use_cache=False).last_hidden_state
    assert shares_rows(model)
    shared = share_rows(model, inputs, scored)
    assert shared is not None
    assert len(shared.inputs["input_ids"]) < len(scored)
    together = shared.rows(model.model(**shared.inputs, use_cache=False).last_hidden_state)
    return alone[scored], together[scored]


@pytest.mark.parametrize("left", [True, False], ids=["padded left", "padded right"])
@pytest.mark.parametrize("family", [*GRID_FAMILIES, *TEXT_FAMILIES])
def test_hidden_states_and_gradients_are_those_of_each_row_alone(family: str, left: bool) -> None:
    """Three answers to one prompt, two to another of the same words and another image, one to a third."""
    model = tiny_model(family)
    sees = family in GRID_FAMILIES
    first, second = ([20, 21, 22], int(sees)), ([20, 21, 22], 2) if sees else ([30, 31], 0)
    prompts = [first, first, second, first, second, ([40, 41, 42, 43, 44], 0)]
    answers = [[50, 51, 52], [50, 51], [53], [54, 55, 56, 57], [58, 59], [60]]
    inputs, scored = a_batch(model, prompts, answers, left=left)
    alone, together = states(model, inputs, scored)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    weights = torch.randn(alone.shape, generator=torch.Generator().manual_seed(3))
    gradients = []
    for hidden in (alone, together):
        model.zero_grad()
        (hidden * weights).sum().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-5


def test_rows_that_share_nothing_are_left_alone() -> None:
    model = tiny_model("qwen2_vl")
    shares_rows(model)
    inputs, scored = a_batch(model, [([20, 21], 1), ([20, 21], 2)], [[50], [51]], left=True)
    assert share_rows(model, inputs, scored) is None
    inputs, scored = a_batch(model, [([20, 21], 1), ([20, 21], 1)], [[50], [51]], left=True)
    assert share_rows(model, {**inputs, "pixel_values_videos": torch.zeros(1)}, scored) is None
    assert share_rows(model, {**inputs, "image_grid_thw": None}, scored) is None


def test_a_model_attends_as_before_behind_the_block() -> None:
    model = tiny_model("qwen2")
    with sharing_rows(model) as shares:
        assert shares
    assert model.config._attn_implementation == "sdpa"
    other = tiny_model("mistral")
    other.config.group_size_ratio = 0.25  # the mark of LlamaFactory's `shift_attn`
    with sharing_rows(other) as shares:
        assert not shares
