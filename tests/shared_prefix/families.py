"""Tiny random models of every family, and pair batches as LlamaFactory collates them."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from uni_dpo.shared_prefix.layout import AnswerRow, SharedRow, lay_out, response_tokens
from uni_dpo.shared_prefix.media import IMAGE_KEYS, media_dim

VOCABULARY, IMAGE, VISION_START, VISION_END, VIDEO = 199, 3, 4, 5, 6
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QWEN_TOKENS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": VISION_START,
    "vision_end_token_id": VISION_END,
}
MROPE = {"rope_scaling": {"rope_type": "default", "type": "mrope", "mrope_section": [1, 1, 2]}}
GRID_PINPOINTS = [[8, 16], [16, 8], [16, 16]]
GEMMA = {
    "head_dim": 8,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 6,
}
# A larger eps here and for Gemma 4: parts are normed by themselves, and of almost nothing that magnifies the rounding.
HYBRID = {
    "head_dim": 8,
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 6,
    "rms_norm_eps": 1e-2,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "mrope_section": [1, 1, 2],
        "mrope_interleaved": True,
        "partial_rotary_factor": 1.0,
    },
}
GEMMA4 = {
    "num_hidden_layers": 4,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
    "num_kv_shared_layers": 1,
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": 6,
    "hidden_size_per_layer_input": 4,
    "final_logit_softcapping": 5.0,
    "rms_norm_eps": 5e-2,
}
TEXT_FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "qwen3_5_text", "gemma3_text", "gemma4_text")
GRID_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v")
TOWER_FAMILIES = ("llava", "llava_next", "llava_onevision", "internvl", "gemma3", "gemma4", "minicpmv4_6")
TILED_FAMILIES = ("llava_next", "llava_onevision")
VISION_FAMILIES = (*GRID_FAMILIES, *TOWER_FAMILIES)
FAMILIES = (*VISION_FAMILIES, *TEXT_FAMILIES)
HYBRID_FAMILIES = ("qwen3_5", "qwen3_5_text", "minicpmv4_6")


def tiny_model(family: str, *, seed: int = 0, attention: str = "sdpa", **text: Any) -> nn.Module:
    """A random model of `family`; weights of a size that makes attention and logits far from uniform."""
    import transformers

    if family not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {family}")
    config = _config(family, {**TEXT, **text})
    config._attn_implementation = attention
    names = {
        "qwen2_vl": "Qwen2VLForConditionalGeneration",
        "qwen2_5_vl": "Qwen2_5_VLForConditionalGeneration",
        "qwen3_vl": "Qwen3VLForConditionalGeneration",
        "qwen3_5": "Qwen3_5ForConditionalGeneration",
        "qwen3_5_text": "Qwen3_5ForCausalLM",
        "llava": "LlavaForConditionalGeneration",
        "llava_next": "LlavaNextForConditionalGeneration",
        "llava_onevision": "LlavaOnevisionForConditionalGeneration",
        "internvl": "InternVLForConditionalGeneration",
        "gemma3": "Gemma3ForConditionalGeneration",
        "glm4v": "Glm4vForConditionalGeneration",
        "llama": "LlamaForCausalLM",
        "mistral": "MistralForCausalLM",
        "qwen2": "Qwen2ForCausalLM",
        "qwen3": "Qwen3ForCausalLM",
        "gemma3_text": "Gemma3ForCausalLM",
        "gemma4": "Gemma4ForConditionalGeneration",
        "gemma4_text": "Gemma4ForCausalLM",
        "minicpmv4_6": "MiniCPMV4_6ForConditionalGeneration",
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, names[family])(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.7 / parameter[0].numel() ** 0.5)
            elif name.endswith("A_log"):  # a state that is forgotten at once leaves gradients of rounding alone
                nn.init.zeros_(parameter)
    return model


def _config(family: str, text: dict[str, Any]) -> Any:
    import transformers

    if family == "llama":
        return transformers.LlamaConfig(**text)
    if family == "mistral":
        return transformers.MistralConfig(**{"sliding_window": None, **text})
    if family == "gemma3_text":
        return transformers.Gemma3TextConfig(**{**GEMMA, **text})
    if family == "gemma4_text":
        return transformers.Gemma4TextConfig(**{**text, **GEMMA4, "vocab_size_per_layer_input": text["vocab_size"]})
    if family == "qwen2":
        return transformers.Qwen2Config(**text)
    if family == "qwen3":
        return transformers.Qwen3Config(head_dim=8, **text)
    if family == "qwen3_5_text":
        return transformers.Qwen3_5TextConfig(**HYBRID, **text)
    tied = text["tie_word_embeddings"]
    if family == "qwen2_vl":
        vision = {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2, "patch_size": 4}
        return transformers.Qwen2VLConfig(
            text_config={**text, **MROPE}, vision_config=vision, tie_word_embeddings=tied, **QWEN_TOKENS
        )
    if family == "qwen2_5_vl":
        vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
        vision |= {"out_hidden_size": 32, "window_size": 16, "fullatt_block_indexes": [1]}
        return transformers.Qwen2_5_VLConfig(
            text_config={**text, **MROPE}, vision_config=vision, tie_word_embeddings=tied, **QWEN_TOKENS
        )
    if family == "qwen3_vl":
        vision = {"depth": 3, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
        vision |= {"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]}
        rope = {"rope_scaling": {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True}}
        return transformers.Qwen3VLConfig(
            text_config={**text, **rope, "head_dim": 8}, vision_config=vision, tie_word_embeddings=tied, **QWEN_TOKENS
        )
    if family == "qwen3_5":
        vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
        vision |= {"out_hidden_size": 32, "num_position_embeddings": 16}
        return transformers.Qwen3_5Config(
            text_config={**HYBRID, **text}, vision_config=vision, tie_word_embeddings=tied, **QWEN_TOKENS
        )
    if family == "glm4v":
        vision = {"depth": 2, "hidden_size": 16, "intermediate_size": 24, "num_heads": 2, "patch_size": 4}
        vision |= {"out_hidden_size": 32, "image_size": 16}
        rope = {"rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2], "partial_rotary_factor": 1.0}}
        tokens = {**QWEN_TOKENS, "image_start_token_id": VISION_START, "image_end_token_id": VISION_END}
        return transformers.Glm4vConfig(
            text_config={**text, **rope}, vision_config=vision, tie_word_embeddings=tied, **tokens
        )
    tower = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    tower |= {"image_size": 8, "patch_size": 4}
    if family == "internvl":
        return transformers.InternVLConfig(
            vision_config=transformers.InternVLVisionConfig(**tower | {"image_size": [16, 16], "patch_size": [4, 4]}),
            text_config=transformers.Qwen3Config(head_dim=8, **text),
            image_token_id=IMAGE,
            image_seq_length=4,
            tie_word_embeddings=tied,
        )
    if family == "minicpmv4_6":
        return transformers.MiniCPMV4_6Config(
            vision_config=tower | {"image_size": 32},
            text_config=transformers.Qwen3_5TextConfig(**HYBRID, **text),
            insert_layer_id=0,
            image_token_id=IMAGE,
            video_token_id=VIDEO,
            tie_word_embeddings=tied,
        )
    if family == "gemma3":
        return transformers.Gemma3Config(
            vision_config=transformers.SiglipVisionConfig(**tower | {"image_size": 16}),
            text_config=transformers.Gemma3TextConfig(**{**GEMMA, **text}),
            mm_tokens_per_image=4,
            image_token_index=IMAGE,
            boi_token_index=VISION_START,
            eoi_token_index=VISION_END,
            tie_word_embeddings=tied,
        )
    if family == "gemma4":
        vision = tower | {"num_key_value_heads": 2, "head_dim": 8, "pooling_kernel_size": 2}
        whole = {**text, **GEMMA4, "vocab_size_per_layer_input": text["vocab_size"]}
        return transformers.Gemma4Config(
            vision_config=transformers.Gemma4VisionConfig(position_embedding_size=64, **vision),
            text_config=transformers.Gemma4TextConfig(use_bidirectional_attention="vision", **whole),
            image_token_id=IMAGE,
            boi_token_id=VISION_START,
            eoi_token_id=VISION_END,
            video_token_id=VIDEO,
            audio_token_id=7,
            tie_word_embeddings=tied,
        )
    if family == "llava_onevision":
        return transformers.LlavaOnevisionConfig(
            vision_config=transformers.SiglipVisionConfig(**tower),
            text_config=transformers.Qwen2Config(**text),
            image_token_index=IMAGE,
            video_token_index=QWEN_TOKENS["video_token_id"],
            image_grid_pinpoints=GRID_PINPOINTS,
            tie_word_embeddings=tied,
        )
    vision = transformers.CLIPVisionConfig(**tower)
    cls, more = transformers.LlavaConfig, {}
    if family == "llava_next":
        cls, more = transformers.LlavaNextConfig, {"image_grid_pinpoints": GRID_PINPOINTS}
    return cls(
        vision_config=vision,
        text_config=transformers.LlamaConfig(**text),
        image_token_index=IMAGE,
        vision_feature_layer=-2,
        tie_word_embeddings=tied,
        **more,
    )


@dataclass(frozen=True)
class Pair:
    """Lengths in tokens, and one size per image: for Qwen and GLM a grid in patches, for tiles pixels."""

    prompt: int
    chosen: int
    rejected: int
    images: Sequence[tuple[int, int]] = ()


MIXED = (Pair(7, 5, 9, [(4, 6)]), Pair(11, 12, 3), Pair(3, 1, 6, [(4, 4), (8, 4)]))
TEXT_ONLY = (Pair(7, 5, 9), Pair(13, 2, 3))
SIZES = {(4, 6): (16, 16), (4, 4): (8, 8), (8, 4): (16, 8)}


def pair_batch(
    model: nn.Module, pairs: Sequence[Pair], *, seed: int = 0, side: str = "right", fake_image: bool = False
) -> dict[str, torch.Tensor]:
    """Collate random pairs: 2n rows, chosen first, their images twice; `fake_image` behind the padding of row 0."""
    family = model.config.model_type
    draw = torch.Generator().manual_seed(seed)

    def words(count: int) -> list[int]:
        return torch.randint(10, VOCABULARY, (count,), generator=draw).tolist()

    prompts, images = [], []
    for pair in pairs if family not in TEXT_FAMILIES else [Pair(p.prompt, p.chosen, p.rejected) for p in pairs]:
        prompt = words(pair.prompt // 2)
        for size in pair.images:
            images.append(size)
            prompt += [VISION_START, *[IMAGE] * _image_tokens(model, size), VISION_END]
        prompts.append(prompt + words(pair.prompt - pair.prompt // 2))
    answers = [words(pair.chosen) for pair in pairs] + [words(pair.rejected) for pair in pairs]
    rows = [
        (prompt + answer, [1] * len(prompt + answer), [-100] * len(prompt) + answer)
        for prompt, answer in zip(prompts * 2, answers, strict=True)
    ]
    if fake_image:
        images = [(4, 4)]
        tail = [VISION_START, *[IMAGE] * _image_tokens(model, (4, 4)), VISION_END]
        parts = zip(rows[0], (tail, [0] * len(tail), [-100] * len(tail)), strict=True)
        rows[0] = tuple(row + end if side == "right" else end + row for row, end in parts)
    length = -(-max(len(ids) for ids, _, _ in rows) // 8) * 8
    columns = [
        torch.tensor([_padded(row[part], length, pad, side) for row in rows]) for part, pad in enumerate((0, 0, -100))
    ]
    batch = dict(zip(("input_ids", "attention_mask", "labels"), columns, strict=True))
    batch |= _image_inputs(model, images if fake_image else images * 2, draw, halves=1 if fake_image else 2)
    if family in ("gemma3", "gemma4"):
        batch[f"{'mm_' * (family == 'gemma4')}token_type_ids"] = (batch["input_ids"] == IMAGE).long()
    if family in GRID_FAMILIES:
        batch |= _positions(model, batch)
    return batch


def share_prefix(batch: dict[str, Tensor], image_token_id: int | None) -> Any:
    """Lay a pair batch out with each prompt, and the images of its chosen half, only once; or say why not."""
    rows = [AnswerRow.of(batch, row) for row in range(len(batch["input_ids"]))]
    pairs = len(rows) // 2
    laid = lay_out(
        [SharedRow([(row, rows[row]), (row + pairs, rows[row + pairs])]) for row in range(pairs)], batch, image_token_id
    )
    if isinstance(laid, str):
        return laid
    inputs, places = laid
    images = {name: values for name, values in batch.items() if name in IMAGE_KEYS}
    if (
        batch["input_ids"][batch["attention_mask"].bool()] == (image_token_id or -1)
    ).any() or "video_grid_thw" in images:
        images = {name: values.chunk(2, media_dim(name, images))[0] for name, values in images.items()}
    return {**inputs, **images}, response_tokens(rows, places)


def _padded(row: list[int], length: int, pad: int, side: str) -> list[int]:
    padding = [pad] * (length - len(row))
    return row + padding if side == "right" else padding + row


def _image_tokens(model: nn.Module, size: tuple[int, int]) -> int:
    if model.config.model_type in (*GRID_FAMILIES, "gemma4", "minicpmv4_6"):
        return size[0] * size[1] // 4
    if model.config.model_type not in TILED_FAMILIES:
        return 4
    from transformers import LlavaNextProcessor, LlavaOnevisionProcessor

    height, width = SIZES[size]
    kind = LlavaNextProcessor if model.config.model_type == "llava_next" else LlavaOnevisionProcessor
    processor = kind.__new__(kind)
    processor.vision_aspect_ratio = "anyres_max_9"
    rows, line_breaks = processor._get_unpadded_features(height, width, 2, 2, height // 8, width // 8)
    return rows + line_breaks + 4


def _image_inputs(
    model: nn.Module, sizes: list[tuple[int, int]], draw: torch.Generator, halves: int
) -> dict[str, torch.Tensor]:
    if not sizes:
        return {}
    family, unique = model.config.model_type, sizes[: len(sizes) // halves]
    if family in GRID_FAMILIES:
        vision = model.config.vision_config
        features = 3 * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.randn(sum(height * width for height, width in unique), features, generator=draw)
        grid = torch.tensor([[1, height, width] for height, width in sizes])
        return {"pixel_values": pixels.repeat(halves, 1), "image_grid_thw": grid}
    if family == "minicpmv4_6":  # as many tokens as the others have, of four times the patches
        patches = 4 * sum(height * width for height, width in unique)
        pixels = torch.randn(1, 3, 4, 4 * patches, generator=draw)
        grid = torch.tensor([[2 * height, 2 * width] for height, width in sizes])
        return {"pixel_values": pixels.repeat(1, 1, 1, halves), "target_sizes": grid}
    if family == "gemma4":
        pixels = torch.rand(len(unique), 40, 3 * 4**2, generator=draw)
        places = torch.full((len(unique), 40, 2), -1)
        for image, (height, width) in enumerate(unique):
            places[image, : height * width] = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(1)
        return {"pixel_values": pixels.repeat(halves, 1, 1), "image_position_ids": places.repeat(halves, 1, 1)}
    if family not in TILED_FAMILIES:
        side = 8 if family == "llava" else 16
        return {"pixel_values": torch.randn(len(unique), 3, side, side, generator=draw).repeat(halves, 1, 1, 1)}
    pixels = torch.randn(len(unique), 5, 3, 8, 8, generator=draw)
    pixel_sizes = torch.tensor([SIZES[size] for size in sizes])
    inputs = {"pixel_values": pixels.repeat(halves, 1, 1, 1, 1), "image_sizes": pixel_sizes}
    if family == "llava_onevision":
        inputs["batch_num_images"] = torch.ones(len(sizes), dtype=torch.long)
    return inputs


def _positions(model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    get_rope_index = model.model.get_rope_index
    arguments = {"attention_mask": batch["attention_mask"], "image_grid_thw": batch.get("image_grid_thw")}
    if "mm_token_type_ids" in inspect.signature(get_rope_index).parameters:
        arguments["mm_token_type_ids"] = (batch["input_ids"] == IMAGE).int()
    positions, deltas = get_rope_index(batch["input_ids"], **arguments)
    return {"position_ids": torch.cat([positions[:1], positions]), "rope_deltas": deltas}
