"""Answers to one prompt as one sequence against each in its own row: hidden states, gradients, what is not shared."""

from typing import Any

import pytest
import torch
from families import (
    FAMILIES,
    GRID_FAMILIES,
    IMAGE,
    TEXT_FAMILIES,
    TOWER_FAMILIES,
    VIDEO,
    VISION_END,
    VISION_START,
    _image_inputs,
    _image_tokens,
    tiny_model,
)
from torch import Tensor

from uni_dpo.shared_prefix.media import media_dim
from uni_dpo.shared_prefix.rows import share_rows, shares_rows, sharing_rows

SIZES = {1: (4, 6), 2: (8, 4)}
"""Of the two images, which are unlike in size where a family looks at that."""


def a_batch(model: Any, prompts: list[tuple[list[int], int]], answers: list[list[int]], *, left: bool) -> Any:
    """Rows of (words, number of an image, 0 for none) and answers, padded on the left of the prompts or behind all."""
    inputs, scored = laid_out([[*seen(model, image), *words] for words, image in prompts], answers, left=left)
    inputs |= joined([image_inputs(model, image) for _, image in prompts if image])
    if model.config.model_type == "gemma3":
        inputs["token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    if model.config.model_type in (*GRID_FAMILIES, "gemma4") and "pixel_values" in inputs:
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
    return inputs, scored


def joined(shown: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The inputs of several images."""
    names = shown[0] if shown else ()
    return {name: torch.cat([image[name] for image in shown], media_dim(name, names)) for name in names}


def seen(model: Any, image: int) -> list[int]:
    return [VISION_START, *[IMAGE] * _image_tokens(model, SIZES[image]), VISION_END] if image else []


def image_inputs(model: Any, image: int) -> dict[str, Tensor]:
    return _image_inputs(model, [SIZES[image]], torch.Generator().manual_seed(image), halves=1)


def laid_out(prompts: list[list[int]], answers: list[list[int]], *, left: bool) -> tuple[dict[str, Tensor], Tensor]:
    before, after = max(map(len, prompts)), max(map(len, answers))
    ids = torch.zeros(len(prompts), before + after, dtype=torch.long)
    mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
        start = before - len(prompt) if left else 0
        end = start + len(prompt) + len(answer)
        ids[row, start:end] = torch.tensor([*prompt, *answer])
        mask[row, start:end] = 1
        scored[row, start + len(prompt) : end] = True
    return {"input_ids": ids, "attention_mask": mask}, scored


def states(model: Any, inputs: dict[str, Any], scored: Tensor, questions: int = 3) -> tuple[Tensor, Tensor]:
    """Hidden states of the scored positions, row by row and shared."""
    model.config.get_text_config()._attn_implementation = "sdpa"
    alone = model.model(**inputs, use_cache=False).last_hidden_state
    assert shares_rows(model)
    shared = share_rows(model, inputs, scored)
    assert shared is not None
    assert len(shared.inputs["input_ids"]) == questions
    media = [name for name in ("pixel_values", "pixel_values_videos") if name in inputs]
    if media:
        ours, theirs = (sum(given[name].numel() for name in media) for given in (shared.inputs, inputs))
        assert ours < theirs
    together = shared.rows(model.model(**shared.inputs, use_cache=False).last_hidden_state)
    return alone[scored], together[scored]


@pytest.mark.parametrize("left", [True, False], ids=["padded left", "padded right"])
@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_and_gradients_are_those_of_each_row_alone(family: str, left: bool) -> None:
    """Three answers to one prompt, two to another of the same words and another image, one to a third."""
    model = tiny_model(family)
    sees = family not in TEXT_FAMILIES
    first, second = ([20, 21, 22], int(sees)), ([20, 21, 22], 2) if sees else ([30, 31], 0)
    prompts = [first, first, second, first, second, ([40, 41, 42, 43, 44], 0)]
    answers = [[50, 51, 52], [50, 51], [53], [54, 55, 56, 57], [58, 59], [60]]
    inputs, scored = a_batch(model, prompts, answers, left=left)
    are_equal(model, *states(model, inputs, scored))


def are_equal(model: Any, alone: Tensor, together: Tensor) -> None:
    """Compare hidden states, and the gradients that go through them."""
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


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5"])
def test_a_video_runs_once(family: str) -> None:
    """Three answers to one video, of which one is empty; one to another; one to that and an image; one to words."""
    model = tiny_model(family)
    frames = family in ("qwen3_vl", "qwen3_5")  # there each frame stands by itself, behind its time
    one = [VISION_START, *[VIDEO] * 4, VISION_END]
    video = [*one, 30, *one] if frames else [VISION_START, *[VIDEO] * 8, VISION_END]
    prompts = [[*video, 20], [*video, 20], [*video, *seen(model, 1), 20], [*video, 20], [*video, 20], [40, 41]]
    inputs, scored = laid_out(prompts, [[50, 51], [52], [53], [54, 55, 56], [], [57]], left=True)
    draw = torch.Generator().manual_seed(3)
    first, second = torch.randn(2, 32, 3 * 2 * 16, generator=draw)
    inputs |= image_inputs(model, 1)
    inputs["pixel_values_videos"] = torch.cat([first, first, second, second, first])
    inputs["video_grid_thw"] = torch.tensor([[2, 4, 4]] * 5)
    ids = inputs["input_ids"]
    inputs["mm_token_type_ids"] = (ids == IMAGE).int() + 2 * (ids == VIDEO).int()
    if family == "qwen2_5_vl":
        inputs["second_per_grid_ts"] = [2.0] * 5
    are_equal(model, *states(model, inputs, scored, questions=4))


@pytest.mark.parametrize("family", TOWER_FAMILIES)
def test_two_images_of_a_prompt_are_told_from_those_of_its_neighbours(family: str) -> None:
    model = tiny_model(family)
    both = [*seen(model, 1), 20, *seen(model, 2)]
    prompts = [both, seen(model, 2), both, [30], seen(model, 2), both]
    inputs, scored = laid_out(prompts, [[50], [51], [52], [53, 54], [55], [50]], left=True)
    shown = [image_inputs(model, image) for image in (1, 2, 2, 1, 2, 2, 1, 2)]
    inputs |= joined(shown)
    if family == "llava_onevision":
        inputs["batch_num_images"] = torch.tensor([1] * 8)
    if family in ("gemma3", "gemma4"):
        inputs[f"{'mm_' * (family == 'gemma4')}token_type_ids"] = (inputs["input_ids"] == IMAGE).long()
    are_equal(model, *states(model, inputs, scored))


def test_images_that_touch_are_left_to_their_rows() -> None:
    """The tokens of two images of LLaVA-NeXT, which have none between them, don't say where one ends."""
    model = tiny_model("llava_next")
    shares_rows(model)
    both = [VISION_START, *seen(model, 1)[1:-1], *seen(model, 2)[1:-1], VISION_END]
    inputs, scored = laid_out([both, both], [[50], [51]], left=False)
    shown = [image_inputs(model, image) for image in (1, 2, 1, 2)]
    inputs |= joined(shown)
    assert share_rows(model, inputs, scored) is None
