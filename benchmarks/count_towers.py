"""What vision towers make of images of one size, on PyTorch's meta device."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from uni_dpo.shared_prefix.families import GRID_FAMILIES, family_of

TILED = {"llava_next": 672, "llava_onevision": 768}
"""Families that cut an image into tiles, and the side in pixels of the image that is counted: two by two tiles."""


def image_features(model: nn.Module, images: int, tokens: int) -> Tensor | None:
    """Return what the tower makes of images of equal size, (images · tokens, hidden size)."""
    if not tokens:
        return None
    if family_of(model) not in GRID_FAMILIES:
        return tower_features(model, images)
    vision = model.config.vision_config  # type: ignore[union-attr]
    tower = model.model.visual  # type: ignore[union-attr]
    side = 2 * round(tokens**0.5)
    grid = torch.tensor([[1, side, 4 * tokens // side]]).repeat(images, 1)
    patch = 3 * 2 * vision.patch_size**2
    pixels = torch.empty(int(grid[0].prod()) * images, patch, device="meta", dtype=tower.dtype)
    with _known_windows(tower):
        return tower(pixels, grid_thw=grid).pooler_output


def tower_features(model: nn.Module, images: int) -> Tensor:
    """Return the features of square images of LLaVA, InternVL, Gemma or MiniCPM-V, (images · tokens, hidden size)."""
    config: Any = model.config
    family = config.model_type
    if family == "gemma4":
        return gemma4_features(model, images)
    if family == "minicpmv4_6":
        return minicpm_features(model, images)
    side = config.vision_config.image_size
    height, width = side if isinstance(side, list | tuple) else (side, side)
    shape, more = (images, 3, height, width), {}
    if family in TILED:
        shape = (images, 5, 3, height, width)
        more["image_sizes"] = torch.tensor([[TILED[family]] * 2] * images)
    pixels = torch.empty(shape, device="meta", dtype=model.dtype)  # type: ignore[arg-type]
    made: Any = model.model.get_image_features(pixels, **more).pooler_output  # type: ignore[operator, union-attr]
    return made.flatten(0, 1) if isinstance(made, Tensor) else torch.cat(list(made))


def gemma4_features(model: Any, images: int, tokens: int = 280) -> Tensor:
    """Return the features of images with as many tokens as its processor allows, where no patch is padding."""
    tower, config = model.model.vision_tower, model.config.vision_config
    patches = tokens * config.pooling_kernel_size**2
    places = torch.empty(images, patches, 2, device="meta", dtype=torch.long)
    padding = torch.empty(images, patches, device="meta", dtype=torch.bool)
    pixels = torch.empty(images, patches, 3 * config.patch_size**2, device="meta", dtype=model.dtype)
    embedded = tower.patch_embedder(pixels, places, padding)
    seen = tower.encoder(inputs_embeds=embedded, attention_mask=None, pixel_position_ids=places).last_hidden_state
    pooled, _ = tower.pooler(seen, places, padding, output_length=tokens)
    found: Tensor = model.model.embed_vision(inputs_embeds=pooled).flatten(0, 1)
    return found


def minicpm_features(model: Any, images: int, side: int = 448) -> Tensor:
    """Return the features of uncut images, whose tower runs on the CPU, as it reads the sizes of images."""
    patch = model.config.vision_config.patch_size
    sizes = torch.tensor([[side // patch] * 2] * images, dtype=torch.int32)
    parts = [part.to_empty(device="cpu") for part in (model.model.vision_tower, model.model.merger)]
    made = model.model.get_image_features(torch.zeros(1, 3, patch, images * side**2 // patch, dtype=model.dtype), sizes)
    for part in parts:
        part.to("meta")
    found = made.pooler_output
    return (found if isinstance(found, Tensor) else torch.cat(list(found))).flatten(0, -2).to("meta")


def tokens_per_image(model: nn.Module) -> int:
    """Return how many tokens such an image has."""
    return len(tower_features(model, 1))


@contextmanager
def _known_windows(tower: Any) -> Iterator[None]:
    """Let towers do without what on the meta device they could not read: Qwen2.5-VL's windows, GLM's positions."""
    if hasattr(tower, "embeddings"):  # GLM's sample positions between those that it learnt: no products
        positions = tower.embeddings.position_embedding.weight
        tower.embeddings.forward = lambda patches, *_: patches + positions[:1]
    if not hasattr(tower, "get_window_index"):
        yield
        return
    unique, windows = torch.unique_consecutive, tower.get_window_index
    known: list[Any] = []

    def remembered(grid: Tensor) -> Any:
        known[:] = windows(grid)
        return known

    tower.get_window_index = remembered
    torch.unique_consecutive = lambda *_: unique(torch.tensor(known[1]))
    try:
        yield
    finally:
        torch.unique_consecutive = unique
        del tower.get_window_index
