"""What `pair_step.py` measures on: random Qwen2-VL models of given shapes, and pairs for them."""

import copy
import itertools
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
    "middle": (
        {
            "hidden_size": 512,
            "intermediate_size": 1536,
            "num_hidden_layers": 16,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [8, 12, 12]},
        },
        {"depth": 12, "embed_dim": 256, "hidden_size": 512, "num_heads": 8, "mlp_ratio": 4},
    ),
    "wide": (
        {
            "hidden_size": 1536,
            "intermediate_size": 8960,
            "num_hidden_layers": 3,
            "num_attention_heads": 12,
            "num_key_value_heads": 2,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        },
        {"depth": 2, "embed_dim": 320, "hidden_size": 1536, "num_heads": 4, "mlp_ratio": 4},
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
    """What is measured: the model's shape and the batch's, lengths in tokens.

    LlamaFactory takes `micro_batch` pairs at once and adds up their gradients; 0: all pairs.
    """

    shape: str
    device: str
    dtype: str
    vocabulary: int
    questions: int
    answers: int
    image_tokens: int
    prompt: int
    answer: int
    repeats: int
    checkpointing: bool
    liger: bool
    attention: str
    micro_batch: int = 0
    seed: int = 0

    @property
    def pairs(self) -> int:
        """All pairs of each question's answers."""
        return self.questions * self.answers * (self.answers - 1) // 2


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
    torch.manual_seed(setting.seed)
    torch.set_default_dtype(getattr(torch, setting.dtype))
    with torch.device(setting.device):
        policy = Qwen2VLForConditionalGeneration(config)
    torch.set_default_dtype(torch.float32)
    reference = copy.deepcopy(policy).eval().requires_grad_(False)
    for weight in policy.model.language_model.layers.parameters():
        weight.data += 0.02 * torch.randn_like(weight)
    policy.model.visual.requires_grad_(False)
    if setting.checkpointing:
        # As LlamaFactory does: re-entrant, and not for what is frozen.
        policy.model.language_model.gradient_checkpointing_enable({"use_reentrant": True})
        policy.train()
    return policy, reference


class RandomPairs:
    """Random tokenized pairs, an image to each question, and the collator for them, as LlamaFactory has it.

    Args:
        model: gives the positions of image tokens.
        setting: how many, how long.
    """

    def __init__(self, model: Any, setting: Setting) -> None:
        self._model = model
        draw = torch.Generator().manual_seed(1 + setting.seed)
        side = 2 * round(setting.image_tokens**0.5)
        height, width = (side, 4 * setting.image_tokens // side) if side else (0, 0)
        image = [VISION_START, *[IMAGE] * (height * width // 4), VISION_END] if side else []

        def words(count: int) -> list[int]:
            return torch.randint(FIRST_WORD, setting.vocabulary, (count,), generator=draw).tolist()

        self._grid = torch.tensor([[1, height, width]])
        self._pixels = [torch.randn(height * width, 1176, generator=draw) for _ in range(setting.questions)]
        self.features: list[dict[str, Any]] = []
        for question in range(setting.questions):
            prompt = image + words(setting.prompt)
            answers = [words(setting.answer) for _ in range(setting.answers)]
            for chosen, rejected in itertools.combinations(answers, 2):
                pair: dict[str, Any] = {"images": [question] if side else [], "videos": None, "audios": None}
                for side_name, answer in (("chosen", chosen), ("rejected", rejected)):
                    pair[f"{side_name}_input_ids"] = prompt + answer
                    pair[f"{side_name}_labels"] = [-100] * len(prompt) + answer
                self.features.append(pair)

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """The chosen rows of the pairs, then the rejected ones."""
        return self.rows(
            [
                {"input_ids": pair[f"{side}_input_ids"], "labels": pair[f"{side}_labels"], "images": pair["images"]}
                for side in ("chosen", "rejected")
                for pair in features
            ]
        )

    def rows(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """A batch of rows of one length."""
        input_ids = torch.tensor([row["input_ids"] for row in rows])
        batch = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids),
            "labels": torch.tensor([row["labels"] for row in rows]),
        }
        images = [image for row in rows for image in row["images"]]
        if images:
            batch["pixel_values"] = torch.cat([self._pixels[image] for image in images])
            batch["image_grid_thw"] = self._grid.repeat(len(images), 1)
        positions, _ = self._model.model.get_rope_index(
            input_ids, mm_token_type_ids=(input_ids == IMAGE).int(), image_grid_thw=batch.get("image_grid_thw")
        )
        return batch | {"position_ids": positions}

    def carried(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Nothing: the sigmoid loss has no scores."""
        return {}
