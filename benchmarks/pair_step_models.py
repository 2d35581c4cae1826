"""What `pair_step.py` measures on: random Qwen2-VL models of given shapes, and pair batches for them."""

import copy
from dataclasses import dataclass
from typing import Any

import torch

IMAGE, VIDEO, VISION_START, VISION_END, FIRST_WORD = 5, 6, 7, 8, 10
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "small": (
        {
            "hidden_size": 256,
            "intermediate_size": 768,
            "num_hidden_layers": 6,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
        },
        {"depth": 6, "embed_dim": 192, "hidden_size": 256, "num_heads": 6, "mlp_ratio": 4},
    ),
    "qwen2-vl-2b": (
        {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 28,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
            "tie_word_embeddings": True,
        },
        {"depth": 32, "embed_dim": 1280, "hidden_size": 1536, "num_heads": 16, "mlp_ratio": 4},
    ),
}


@dataclass(frozen=True)
class Setting:
    """What is measured: the model's shape and the batch's, lengths in tokens."""

    shape: str
    device: str
    dtype: str
    vocabulary: int
    pairs: int
    image_tokens: int
    prompt: int
    answer: int
    repeats: int
    checkpointing: bool
    liger: bool
    attention: str


def build_models(setting: Setting) -> tuple[Any, Any]:
    """A random policy with a frozen vision tower, LlamaFactory's default, and the reference it has moved away from."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration

    text, vision = SHAPES[setting.shape]
    text = {**text, "vocab_size": setting.vocabulary, "max_position_embeddings": 32768}
    config = Qwen2VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        vision_start_token_id=VISION_START,
        vision_end_token_id=VISION_END,
        tie_word_embeddings=text.get("tie_word_embeddings", False),
    )
    if setting.liger:
        from liger_kernel.transformers import apply_liger_kernel_to_qwen2_vl

        apply_liger_kernel_to_qwen2_vl(fused_linear_cross_entropy=False, cross_entropy=True)
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, setting.dtype))
    with torch.device(setting.device):
        policy = Qwen2VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    for weight in policy.model.language_model.layers.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    policy.model.visual.requires_grad_(False)
    if setting.checkpointing:
        policy.gradient_checkpointing_enable({"use_reentrant": False})
        policy.train()
    return policy, reference


def pairwise_batch(model: Any, setting: Setting) -> dict[str, torch.Tensor]:
    """What LlamaFactory's collator gives for random pairs with one image each."""
    draw = torch.Generator().manual_seed(1)
    side = 2 * round(setting.image_tokens**0.5)
    height, width = (side, 4 * setting.image_tokens // side) if side else (0, 0)

    def words(count: int) -> torch.Tensor:
        return torch.randint(FIRST_WORD, setting.vocabulary, (setting.pairs, count), generator=draw)

    image = torch.tensor([VISION_START, *[IMAGE] * (height * width // 4), VISION_END]).expand(setting.pairs, -1)
    prompt = torch.cat([image, words(setting.prompt)], 1) if side else words(setting.prompt)
    answers = torch.cat([words(setting.answer), words(setting.answer)])
    input_ids = torch.cat([prompt.repeat(2, 1), answers], 1)
    batch = {
        "input_ids": input_ids,
        "attention_mask": torch.ones_like(input_ids),
        "labels": torch.cat([torch.full_like(prompt, -100).repeat(2, 1), answers], 1),
    }
    if side:
        grid = torch.tensor([[1, height, width]]).expand(2 * setting.pairs, -1).contiguous()
        pixels = torch.randn(setting.pairs * height * width, 1176, generator=draw).repeat(2, 1)
        batch |= {"pixel_values": pixels, "image_grid_thw": grid}
    positions, _ = model.model.get_rope_index(
        input_ids, mm_token_type_ids=(input_ids == IMAGE).int(), image_grid_thw=batch.get("image_grid_thw")
    )
    return batch | {"position_ids": positions}
