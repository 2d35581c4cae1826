"""What a model is made of, read from its config.json: widths, depths, parameters."""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.storage import read_json

TEXT_FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
VISION_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")


@dataclass(frozen=True)
class TextShape:
    """A language model's widths; `biased`: q, k and v have biases; `normed`: q and k have norms of their own."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    tied: bool
    biased: bool
    normed: bool

    @property
    def query(self) -> int:
        """The width of all heads."""
        return self.heads * self.head_size

    @property
    def keys(self) -> int:
        """The width of all keys, or values."""
        return self.kv_heads * self.head_size

    @property
    def linear(self) -> int:
        """The weights of a layer's linear maps, each used once per token."""
        return 2 * self.hidden * (self.query + self.keys) + 3 * self.hidden * self.intermediate

    @property
    def embedding(self) -> int:
        """The weights of the embedding, and of the head."""
        return self.vocabulary * self.hidden

    @property
    def parameters(self) -> int:
        """All weights, the head included where it is not the embedding."""
        layer = self.linear + 2 * self.hidden
        layer += (self.query + 2 * self.keys) * self.biased + 2 * self.head_size * self.normed
        return self.layers * layer + self.hidden + self.embedding * (1 if self.tied else 2)


@dataclass(frozen=True)
class VisionShape:
    """A vision tower's widths.

    Attributes:
        gated: whether its MLP has a gate and its norms no bias (Qwen2.5-VL).
        window: patches that a layer attends to where it has windows; 0 where all layers attend to all.
        whole_layers: layers that attend to all patches of an image.
        out: the language model's width.
        deepstack: levels whose features go into deeper layers of the language model.
        positions: rows of a learnt table of positions; 0 where there is none.
    """

    layers: int
    width: int
    intermediate: int
    patch: int
    merge: int
    temporal: int
    out: int
    gated: bool
    window: int
    whole_layers: int
    deepstack: int
    positions: int

    @property
    def patch_numbers(self) -> int:
        """Numbers of a patch: colours × frames × pixels."""
        return 3 * self.temporal * self.patch**2

    @property
    def linear(self) -> int:
        """The weights of a layer's linear maps."""
        return 4 * self.width**2 + (3 if self.gated else 2) * self.width * self.intermediate

    @property
    def merger(self) -> int:
        """The weights of the linear maps from merged patches to image tokens."""
        merged = self.width * self.merge**2
        return merged * merged + merged * self.out

    @property
    def parameters(self) -> int:
        """All weights of tower and projector."""
        width, merged = self.width, self.width * self.merge**2
        norm = width * (1 if self.gated else 2)
        layer = self.linear + 2 * norm + 4 * width
        layer += (2 * self.intermediate + width) if self.gated else (self.intermediate + width)
        biases = merged + self.out
        levels = self.deepstack * (self.merger + biases + 2 * merged)
        table = self.positions * width + (width if self.positions else 0)
        return self.patch_numbers * width + table + self.layers * layer + norm + self.merger + biases + levels


@dataclass(frozen=True)
class ModelShape:
    """A model: its family, its language model, and its vision tower if it has one."""

    family: str
    text: TextShape
    vision: VisionShape | None

    @property
    def parameters(self) -> int:
        """All weights."""
        return self.text.parameters + (self.vision.parameters if self.vision else 0)


def read_shape(model: str) -> ModelShape:
    """Return the shape of a checkpoint's folder, or of one of the models that are known by name (`models.json`).

    Raises:
        UniDPOError: there is no config.json, or its family is not known.
    """
    path = Path(model) / "config.json"
    if path.is_file():
        return shape_of(read_json(path), str(path))
    known = json.loads(files(__package__).joinpath("models.json").read_text(encoding="utf-8"))
    name = f"{Path(model).name.lower().removesuffix('-instruct')}-instruct"
    if name not in known:
        raise UniDPOError(
            f"model_name_or_path: {model} is no folder with a config.json, which is all that a plan needs; "
            f"download it, or name one of {', '.join(known)}"
        )
    return shape_of(known[name], name)


def shape_of(config: dict[str, Any], place: str = "config.json") -> ModelShape:
    """Return the shape that a config.json describes.

    Raises:
        UniDPOError: the family is not known, or a number is missing.
    """
    family = config.get("model_type")
    if family not in (*TEXT_FAMILIES, *VISION_FAMILIES):
        known = ", ".join((*VISION_FAMILIES, *TEXT_FAMILIES))
        raise UniDPOError(f"{place}: a plan knows the families {known}; this is {family!r}")
    try:
        text = _text({**config, **(config.get("text_config") or {})}, str(family), config)
        vision = _vision(config.get("vision_config") or {}, str(family), text) if family in VISION_FAMILIES else None
    except KeyError as missing:
        raise UniDPOError(f"{place}: has no {missing.args[0]}") from None
    return ModelShape(str(family), text, vision)


def _text(text: dict[str, Any], family: str, config: dict[str, Any]) -> TextShape:
    heads = text["num_attention_heads"]
    tied = config.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    return TextShape(
        layers=text["num_hidden_layers"],
        hidden=text["hidden_size"],
        intermediate=text["intermediate_size"],
        heads=heads,
        kv_heads=text.get("num_key_value_heads") or heads,
        head_size=text.get("head_dim") or text["hidden_size"] // heads,
        vocabulary=text["vocab_size"],
        tied=bool(tied),
        biased=family.startswith("qwen2"),
        normed=family.startswith("qwen3"),
    )


def _vision(vision: dict[str, Any], family: str, text: TextShape) -> VisionShape:
    gated = family == "qwen2_5_vl"
    width = vision["embed_dim"] if family == "qwen2_vl" else vision["hidden_size"]
    patch, merge = vision.get("patch_size", 16 if family == "qwen3_vl" else 14), vision.get("spatial_merge_size", 2)
    window = vision.get("window_size", 112) if gated else 0
    levels = vision.get("deepstack_visual_indexes", [8, 16, 24]) if family == "qwen3_vl" else []
    return VisionShape(
        layers=vision["depth"],
        width=width,
        intermediate=vision["mlp_ratio"] * width if family == "qwen2_vl" else vision["intermediate_size"],
        patch=patch,
        merge=merge,
        temporal=vision.get("temporal_patch_size", 2),
        out=text.hidden,
        gated=gated,
        window=(window // patch) ** 2,
        whole_layers=len(vision.get("fullatt_block_indexes", [7, 15, 23, 31])) if gated else vision["depth"],
        deepstack=len(levels),
        positions=vision.get("num_position_embeddings", 2304) if family == "qwen3_vl" else 0,
    )
