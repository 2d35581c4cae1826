"""Which models share a prefix, and where each family of transformers keeps what that takes."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

TEXT_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_5_text", "gemma3_text", "gemma4_text")
GRID_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v")
"""Families whose images are patches in a grid, which sets the positions of their tokens; each has a text model of its
own."""

TOWER_FAMILIES = ("llava", "llava_next", "llava_onevision", "internvl", "gemma3", "gemma4", "minicpmv4_6")
"""Families that put a tower and a projector before one of `TEXT_FAMILIES`."""

STACKED_FAMILIES = ("internvl", "gemma3")
"""Families whose image features are one tensor, (images or tiles, tokens, D), rather than one of each image."""

FLAT_FAMILIES = ("gemma4",)
"""Families whose image features are one tensor, (all tokens, D), in which no image's end is marked."""

PACKED_FAMILIES = ("minicpmv4_6",)
"""Families whose images, and the slices that these are cut into, lie side by side: (1, C, patch, patches · patch)."""

CAPPED_FAMILIES = ("gemma4", "gemma4_text")
"""Families that read the cap of their logits from their configuration at every pass."""

MASKS_BY_NAME = ("gemma3_text", "gemma4_text")
"""Language models that take a mask for every kind of layer by its name, also where all layers are of one kind."""

FLEX_ATTENTION = "flex_attention"
PREFIX_ATTENTION = "uni_dpo_prefix"
"""The name of SDPA in two calls among the attention implementations of transformers."""

FULL, SLIDING = "full_attention", "sliding_attention"
"""What transformers calls the kinds of layers that take a mask."""

LINEAR = "linear_attention"
"""Layers that take none: the prompt's state is carried into each answer (`linear_attention.py`)."""

CARRYING_FAMILIES = ("qwen3_5", "qwen3_5_text", "minicpmv4_6")
"""Families whose linear attention is proved so."""

MASKED_ATTENTION = ("sdpa", "eager", FLEX_ATTENTION, PREFIX_ATTENTION)
"""Attention implementations that take any mask."""


def why_not_shared(model: nn.Module, attention: str | None = None) -> str | None:
    """Say in one line why `model` can't be trained on shared sequences; None if it can.

    Proved equal to two sequences per pair, by tests: the families above, with full attention or sliding windows,
    through SDPA, FlexAttention or eager code.

    Args:
        model: a causal language model of transformers, wrapped or not.
        attention: what will take the place of the attention that the language model was loaded with, if anything.
    """
    family = family_of(model)
    carried = {LINEAR} if family in CARRYING_FAMILIES else {*()}
    if others := layer_kinds(model) - {FULL, SLIDING} - carried:
        return f"it has {' and '.join(sorted(others))} layers"
    if family not in (*TEXT_FAMILIES, *GRID_FAMILIES, *TOWER_FAMILIES):
        return f"{family} models are not among those proved equal"
    if not type(unwrapped(model)).forward.__module__.startswith("transformers."):
        return "another library replaced its forward pass"
    text = text_config(model)
    if hasattr(text, "group_size_ratio"):
        return "shift_attn attends in groups"
    if family in TOWER_FAMILIES and text.model_type not in TEXT_FAMILIES:
        return f"{text.model_type} language models are not among those proved equal"
    if logit_cap(model) is not None and family not in CAPPED_FAMILIES:
        return "it caps its logits behind the projection onto the vocabulary"
    if getattr(text, "use_bidirectional_attention", None) not in (None, False, "vision"):
        return "its text sees what follows it"
    attention = attention or text._attn_implementation
    if LINEAR in layer_kinds(model):
        if attention == FLEX_ATTENTION:
            return "its linear attention is proved beside sdpa and eager code only"
        if None in map(linear_kernels, linear_attentions(model)):
            return "this transformers keeps the kernels of its linear attention elsewhere"
    if attention not in MASKED_ATTENTION:
        return f"{attention} takes no custom mask (flash_attn: sdpa does)"
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "prompt tuning puts tokens of its own in front"
    return None


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside DDP, DeepSpeed and PEFT."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def is_sharded(model: nn.Module) -> bool:
    """Tell whether each rank holds a part of the model's weights.

    By ZeRO-3 or FSDP, and gathers the others to run it.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.tensor import DTensor

    if any(hasattr(parameter, "ds_id") or isinstance(parameter, DTensor) for parameter in model.parameters()):
        return True
    return any(isinstance(module, FullyShardedDataParallel) for module in model.modules())


def text_config(model: nn.Module) -> Any:
    """Return the configuration of the language model; its `_attn_implementation` is read at every forward pass."""
    return unwrapped(model).config.get_text_config()


def attention_windows(model: nn.Module) -> dict[str, int | None]:
    """Return the kinds of the language model's layers, and how many positions each sees; None where it sees all."""
    text = text_config(model)
    window = getattr(text, "sliding_window", None)
    if text.model_type == "mistral":  # one mask for all layers
        return {FULL if window is None else SLIDING: window}
    return {kind: window if kind == SLIDING else None for kind in sorted(layer_kinds(model) - {LINEAR})}


def layer_kinds(model: nn.Module) -> set[str]:
    """Return what the language model's layers are, in the words of transformers."""
    return set(getattr(text_config(model), "layer_types", None) or (FULL,))


def decoder_layers(model: nn.Module) -> Iterable[nn.Module]:
    """Return the layers of the language model."""
    inner = unwrapped(model).model
    layers: Iterable[nn.Module] = getattr(inner, "language_model", inner).layers
    return layers


def linear_attentions(model: nn.Module) -> list[Any]:
    """Return what attends in those of them that attend linearly."""
    return [layer.linear_attn for layer in decoder_layers(model) if hasattr(layer, "linear_attn")]


def linear_kernels(attention: nn.Module) -> tuple[tuple[Any, str], tuple[Any, str]] | None:
    """Tell whose attributes are the causal convolution and the chunked delta rule of a linear attention.

    They are the layer's, or since transformers 5.2x functions of its module. None where they are neither.
    """
    module = sys.modules[type(attention).__module__]
    if hasattr(attention, "chunk_gated_delta_rule"):
        fused = getattr(attention, "causal_conv1d_fn", None) is not None
        convolution = (attention, "causal_conv1d_fn") if fused else (attention.conv1d, "forward")
        return convolution, (attention, "chunk_gated_delta_rule")
    if hasattr(module, "causal_conv1d_fn") and hasattr(module, "torch_chunk_gated_delta_rule"):
        return (module, "causal_conv1d_fn"), (module, "torch_chunk_gated_delta_rule")
    return None


def family_of(model: nn.Module) -> str:
    """Return the word of the class: a loaded Qwen-VL configuration of transformers 4.57 gives its text model's."""
    return type(unwrapped(model).config).model_type


def image_token_id(model: nn.Module) -> int | None:
    """Return the id that stands for image features in `input_ids`; None for text models."""
    if family_of(model) in TEXT_FAMILIES:
        return None
    config = unwrapped(model).config
    return getattr(config, "image_token_id", None) or getattr(config, "image_token_index", None)


def video_token_id(model: nn.Module) -> int | None:
    """Return the id that stands for video features alone; None where there is none, as for GLM."""
    if family_of(model) not in GRID_FAMILIES or family_of(model) == "glm4v":
        return None
    return getattr(unwrapped(model).config, "video_token_id", None)


def looks_both_ways(model: nn.Module) -> tuple[str, ...]:
    """Return in which kinds of layers the tokens of an image see all of that image, not only what is before them."""
    if family_of(model) == "gemma3":
        return FULL, SLIDING
    sees = family_of(model) == "gemma4" and text_config(model).use_bidirectional_attention == "vision"
    return (SLIDING,) if sees else ()


def logit_cap(model: nn.Module) -> float | None:
    """Return c where logits are c · tanh(logits / c) behind the projection onto the vocabulary."""
    cap: float | None = getattr(text_config(model), "final_logit_softcapping", None)
    return cap


def tells_images_apart(model: nn.Module) -> bool:
    """Tell whether the features of each image can be taken out of those of a batch."""
    return family_of(model) not in FLAT_FAMILIES


def output_head(model: nn.Module) -> nn.Module:
    """Return the projection onto the vocabulary."""
    return unwrapped(model).get_output_embeddings()


def vision_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return what makes image features: tower, projector, the line break of some LLaVA. Empty for text models."""
    inner = getattr(unwrapped(model), "model", None)
    if inner is None or not hasattr(inner, "get_image_features"):
        return {}
    return {name: parameter for name, parameter in inner.named_parameters() if not name.startswith("language_model.")}


def keys_worth_a_token(model: nn.Module) -> float:
    """Tell how many attended keys cost as much as the rest of a token's way through the language model.

    The ratio of the multiplications of all layers' linear maps to those of attention to one key, for which layers of
    linear attention count as if their maps were those of the others.
    """
    text = text_config(model)
    heads = text.num_attention_heads
    head_size = getattr(text, "head_dim", None) or text.hidden_size // heads
    width = heads * head_size
    projections = text.hidden_size * (2 * width + 2 * text.num_key_value_heads * head_size)
    maps = projections + 3 * text.hidden_size * text.intermediate_size
    layers = getattr(text, "layer_types", None) or [FULL]
    return maps * len(layers) / (2 * width * max(1, len(layers) - layers.count(LINEAR)))


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Let an instance's attribute be another for the length of a block."""
    own = vars(owner).get(name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own is None:
            delattr(owner, name)
        else:
            setattr(owner, name, own)
