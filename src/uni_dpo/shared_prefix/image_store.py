"""What a frozen vision tower makes of each image, kept on disk: an epoch or a run that meets it again does not look.

An image is known by its pixels as the tower is given them, so that no change of a file, of its processing or of the
data's order finds anything stale. What the tower is, is for the name of the folder to say.
"""

import hashlib
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from transformers.utils import ModelOutput

from uni_dpo.shared_prefix.families import STACKED_FAMILIES, family_of, is_sharded, replaced, unwrapped
from uni_dpo.storage.identity import folder_of
from uni_dpo.storage.writing import replacing

logger = logging.getLogger(__name__)

Features = dict[str, Tensor]
"""Of one image: `embeddings` (tokens, D), and for Qwen3-VL `deepstack.0` and on, each (tokens, D)."""


@dataclass
class ImageOutputs(ModelOutput):
    """What `get_image_features` gives in transformers 5, where some models hand it on.

    Attributes:
        pooler_output: the embeddings of all images, or of each.
        deepstack_features: of all images, each level (tokens, D).
    """

    pooler_output: Any = None
    deepstack_features: Any = None


class ImageStore:
    """The image features of one vision tower, run in one way.

    Any number of processes may share it: a file is whole once it has its name, and its name says what is in it.

    Args:
        folder: where stores of any tower are; each has a folder in it, named after `identity`.
        identity: everything that changes the features but the pixels; JSON-like.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder_of(identity, folder)

    def count(self) -> int:
        """Tell how many images are there."""
        return sum(1 for _ in self.folder.glob("*/*.safetensors"))

    @contextmanager
    def used(self, model: nn.Module, keys: Sequence[str]) -> Iterator[None]:
        """Let `model` take the images of `keys` from here in this block, or leave here what it makes of them.

        Args:
            model: policy or reference, wrapped or not.
            keys: of the batch's images, in order; see `image_keys`.
        """
        owner = unwrapped(model).model
        make = owner.get_image_features

        def take_or_make(*args: Any, **kwargs: Any) -> Any:
            kept = [self.read(key) for key in keys]
            found = [features for features in kept if features is not None]
            if _all_ranks(model, len(found) == len(kept)):
                return _joined(found, family_of(model) in STACKED_FAMILIES)
            made = make(*args, **kwargs)
            for key, known, features in zip(keys, kept, _per_image(made), strict=True):
                if known is None:
                    self.write(key, features)
            return made

        with replaced(owner, "get_image_features", take_or_make):
            yield

    def read(self, key: str) -> Features | None:
        """Return the features of an image, in the computer's memory; None where they are missing or damaged."""
        try:
            with safe_open(self._path(key), "pt") as file:
                features = {name: file.get_tensor(name) for name in file.offset_keys()}
                checksum = (file.metadata() or {}).get("crc32")
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            checksum, features = None, {}
        if checksum == _checksum(features):
            return features
        logger.warning("%s is damaged; it is made again", self._path(key))
        return None

    def write(self, key: str, features: Features) -> None:
        """Keep the features of an image."""
        features = {name: part.detach().cpu().contiguous().clone() for name, part in features.items()}
        with replacing(self._path(key)) as temporary:
            temporary.write_bytes(save(features, {"crc32": _checksum(features)}))

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"


def image_keys(inputs: dict[str, Any]) -> list[str]:
    """Return SHA-256 of the pixels of every image of a batch and of their layout, in the order of the images.

    Args:
        inputs: the model's, with `pixel_values` of `image_grid_thw`'s patches (Qwen, GLM), or one row per image or
            tile (LLaVA, InternVL, Gemma), and then `image_sizes` (images, 2) where patches are padded to the most
            that an image of the batch has; or side by side in the `target_sizes` of their patches (MiniCPM-V).
    """
    pixels, grid, sizes = (inputs.get(name) for name in ("pixel_values", "image_grid_thw", "image_sizes"))
    if pixels is None:
        return []
    if (packed := inputs.get("target_sizes")) is not None:
        widths = (packed.prod(-1) * pixels.shape[2]).tolist()
        mode = inputs.get("downsample_mode")
        return [_key(part, row, mode) for part, row in zip(pixels.split(widths, -1), packed, strict=True)]
    if grid is not None:
        return [_key(part, row) for part, row in zip(pixels.split(grid.prod(-1).tolist()), grid, strict=True)]
    if sizes is not None:
        return [_key(_without_padding(part), row) for part, row in zip(pixels, sizes, strict=True)]
    return [_key(part) for part in pixels]


def _key(pixels: Tensor, layout: Tensor | None = None, mode: str | None = None) -> str:
    described = f"{pixels.dtype} {[*pixels.shape]} {None if layout is None else layout.tolist()}{mode or ''}"
    digest = hashlib.sha256(described.encode())
    digest.update(_bytes(pixels))
    return digest.hexdigest()


def _without_padding(patches: Tensor) -> Tensor:
    """An image's patches (patches, 3, H, W) without those at the end that are all zeros."""
    filled = patches.flatten(1).any(1).nonzero()
    return patches[: int(filled.max()) + 1] if len(filled) else patches[:0]


def _checksum(features: Features) -> str:
    total = 0
    for name in sorted(features):
        total = zlib.crc32(_bytes(features[name]), zlib.crc32(name.encode(), total))
    return f"{total:08x}"


def _bytes(values: Tensor) -> Any:
    return values.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()


def _all_ranks(model: nn.Module, found: bool) -> bool:
    """Whether no rank needs the tower: one that runs it needs every rank that holds a part of it to do the same."""
    if not is_sharded(model):
        return found
    everywhere = torch.tensor(int(found), device=next(model.parameters()).device)
    torch.distributed.all_reduce(everywhere, torch.distributed.ReduceOp.MIN)
    return bool(everywhere)


def _per_image(made: Any) -> list[Features]:
    """Split what `get_image_features` gives, in transformers 5 an object, in 4 a sequence, or a pair of them."""
    if hasattr(made, "pooler_output"):
        embeddings, levels = made.pooler_output, getattr(made, "deepstack_features", None) or []
    elif isinstance(made[0], Tensor):
        embeddings, levels = made, []
    else:
        embeddings, levels = made
    lengths = [len(part) for part in embeddings]
    images: list[Features] = [{"embeddings": part} for part in embeddings]
    for number, level in enumerate(levels):
        for image, part in zip(images, level.split(lengths), strict=True):
            image[f"deepstack.{number}"] = part
    return images


def _joined(images: list[Features], stacked: bool) -> Any:
    """What `get_image_features` would have given; the model itself moves it to its device."""
    parts = [image["embeddings"] for image in images]
    embeddings = torch.stack(parts) if stacked else tuple(parts)
    levels = [torch.cat([image[f"deepstack.{number}"] for image in images]) for number in range(len(images[0]) - 1)]
    if int(transformers.__version__.split(".")[0]) >= 5:
        return ImageOutputs(pooler_output=embeddings, deepstack_features=levels)
    return (embeddings, levels) if levels else embeddings
