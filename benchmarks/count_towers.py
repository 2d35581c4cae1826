"""What the towers of LLaVA, InternVL and Gemma 3 make of images of one size, on PyTorch's meta device."""

from typing import Any

import torch
from torch import Tensor, nn

TILED = {"llava_next": 672, "llava_onevision": 768}
"""Families that cut an image into tiles, and the side in pixels of the image that is counted: two by two tiles."""


def tower_features(model: nn.Module, images: int) -> Tensor:
    """Return the features of square images, (images · tokens, hidden size)."""
    config: Any = model.config
    side, family = config.vision_config.image_size, config.model_type
    height, width = side if isinstance(side, list | tuple) else (side, side)
    shape, more = (images, 3, height, width), {}
    if family in TILED:
        shape = (images, 5, 3, height, width)
        more["image_sizes"] = torch.tensor([[TILED[family]] * 2] * images)
    pixels = torch.empty(shape, device="meta", dtype=model.dtype)  # type: ignore[arg-type]
    made: Any = model.model.get_image_features(pixels, **more).pooler_output  # type: ignore[operator, union-attr]
    return made.flatten(0, 1) if isinstance(made, Tensor) else torch.cat(list(made))


def tokens_per_image(model: nn.Module) -> int:
    """Return how many tokens such an image has."""
    return len(tower_features(model, 1))
