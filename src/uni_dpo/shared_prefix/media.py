"""Which images and videos of a batch are whose: what a model is given of all rows, by row, or once for two halves."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from uni_dpo.shared_prefix.families import (
    FLAT_FAMILIES,
    PACKED_FAMILIES,
    TOWER_FAMILIES,
    family_of,
    image_token_id,
    unwrapped,
    video_token_id,
)

VIDEO_KEYS = ("pixel_values_videos", "video_grid_thw")
IMAGE_KEYS = (
    *("pixel_values", "image_grid_thw", "image_sizes", "image_position_ids", "batch_num_images", "target_sizes"),
    *VIDEO_KEYS,
)
"""Model inputs that run over images or videos (or their patches), in the order of the rows; see `media_dim`."""
Media = dict[str, Tensor]
"""Inputs of a model that run over the images or videos of one row, or over their patches; see `media_dim`."""


def media_of_rows(model: nn.Module, inputs: dict[str, Any]) -> list[Media] | None:
    """Return the images and videos of each row of a model's inputs; None where they can't be told apart."""
    ids, attended = inputs["input_ids"], inputs["attention_mask"].bool()
    config = unwrapped(model).config
    rows: list[Media] = [{} for _ in ids]
    for pixels, grid, token in (
        ("pixel_values", "image_grid_thw", image_token_id(model)),
        ("pixel_values_videos", "video_grid_thw", video_token_id(model)),
    ):
        if inputs.get(pixels) is None:
            continue
        places = ids.eq(token or -1)
        if token is None or (places & ~attended).any():
            return None
        if inputs.get(grid) is not None:  # Qwen and GLM
            found = _of_sizes(places, inputs, pixels, grid, config.vision_config.spatial_merge_size**2)
        elif family_of(model) in FLAT_FAMILIES:
            found = _of_patches(model, places, inputs)
        elif family_of(model) in PACKED_FAMILIES and pixels == "pixel_values":
            # MiniCPM-V: 4 or 16 patches of an image, or of a slice of one, make a token.
            mode = inputs.get("downsample_mode") or config.downsample_mode
            width = config.vision_config.patch_size
            found = _of_sizes(places, inputs, pixels, "target_sizes", 4 if mode == "4x" else 16, dim=-1, width=width)
        elif family_of(model) in TOWER_FAMILIES and pixels == "pixel_values":
            found = _of_towers(places, inputs)
        else:
            return None
        if found is None:
            return None
        rows = [row | more for row, more in zip(rows, found, strict=True)]
    return rows


def same_media(first: Media, second: Media) -> bool:
    """Tell whether two rows see the same; the sizes are compared before the pixels."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in reversed(first))


def _of_sizes(
    places: Tensor, inputs: dict[str, Any], pixels: str, sizes: str, patches: int, *, dim: int = 0, width: int = 1
) -> list[Media] | None:
    """The sizes of an image say how many patches it has, each `width` long in the pixels; so many make a token."""
    if inputs.get(sizes) is None:
        return None
    counts = _counts(places.sum(1).tolist(), (inputs[sizes].prod(-1) // patches).tolist())
    if counts is None:
        return None
    parts = inputs[sizes].split(counts)
    lengths = [int(part.prod(-1).sum()) * width for part in parts]
    return _rows({pixels: inputs[pixels].split(lengths, dim), sizes: parts}, counts)


def _of_patches(model: nn.Module, places: Tensor, inputs: dict[str, Any]) -> list[Media] | None:
    """Gemma 4: a square of patches that are no padding makes a token."""
    media = {name: inputs.get(name) for name in ("pixel_values", "image_position_ids")}
    if not all(isinstance(values, Tensor) for values in media.values()):
        return None
    square = unwrapped(model).config.vision_config.pooling_kernel_size ** 2
    patches = (inputs["image_position_ids"] >= 0).all(-1).sum(1).tolist()
    counts = _counts(places.sum(1).tolist(), [count // square for count in patches])
    return None if counts is None else _rows({name: inputs[name].split(counts) for name in media}, counts)


def _of_towers(places: Tensor, inputs: dict[str, Any]) -> list[Media] | None:
    """Find whose the images are where each is one run of tokens (LLaVA), or all have as many (InternVL, Gemma 3)."""
    pixels, sizes, joined = (inputs.get(name) for name in ("pixel_values", "image_sizes", "batch_num_images"))
    if not isinstance(pixels, Tensor):
        return None
    tokens = places.sum(1).tolist()
    if sizes is None:
        each, rest = divmod(sum(tokens), len(pixels))
        counts = None if rest else _counts(tokens, [each] * len(pixels))
    else:
        begins = places & ~nn.functional.pad(places[:, :-1], (1, 0))
        counts = begins.sum(1).tolist()
    if counts is None or sum(counts) != len(pixels):  # images that touch are one run
        return None
    parts = {"pixel_values": pixels.split(counts)}
    if sizes is not None:
        parts["image_sizes"] = sizes.split(counts)
    if joined is not None:
        together = _counts(counts, joined.tolist())
        if together is None:
            return None
        parts["batch_num_images"] = joined.split(together)
    return _rows(parts, counts)


def _counts(wanted: Sequence[int], items: Sequence[int]) -> list[int] | None:
    """How many of the items, in order, make up what each row wants; None where that does not come out even."""
    counts = []
    place = 0
    for rest in wanted:
        start = place
        while rest > 0 and place < len(items):
            rest -= items[place]
            place += 1
        if rest:
            return None
        counts.append(place - start)
    return counts if place == len(items) else None


def _rows(parts: dict[str, Sequence[Tensor]], counts: Sequence[int]) -> list[Media]:
    return [{name: values[row] for name, values in parts.items()} if count else {} for row, count in enumerate(counts)]


def media_dim(key: str, media: Collection[str]) -> int:
    """Return which dimension of a model's input runs over images: the last where `target_sizes` say their sizes."""
    return -1 if key == "pixel_values" and "target_sizes" in media else 0
