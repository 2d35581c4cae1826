"""A complete Qwen2-VL of 0.7 million parameters, made on the spot.

Architecture, tokenizer (byte-level BPE with Qwen's special tokens), processor and chat template are the
real classes at a small size, so everything that reads a Qwen2-VL checkpoint reads this one. The weights
are random; a short SFT on the digits teaches it.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

IMAGE_SIDE = 56
"""Pixels per side of an image: 4 × 4 patches of 14, merged 2 × 2 into 4 image tokens."""

SPECIAL_TOKENS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

CORPUS = (
    "You are a helpful assistant. system user assistant",
    "Which digit is written here? Which digit do you see in the image?",
    "The digit is zero. one two three four five six seven eight nine",
    "0 1 2 3 4 5 6 7 8 9 A. B. C. D. Yes No yes no",
    "Please answer with the letter of the option. Question: Options:",
    "Answer the question using a single word.",
)

_ITEM = (
    "{% if item['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif item['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in item %}{{ item['text'] }}{% endif %}"
)
INSTRUCT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    f"{{% for item in message['content'] %}}{_ITEM}{{% endfor %}}{{% endif %}}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Role messages and a default system prompt, as the instruct checkpoints have them."""
BASE_TEMPLATE = f"{{% for item in messages %}}{_ITEM}{{% endfor %}}"
"""Bare content items, as the base checkpoints have it: role messages render to an empty prompt."""


def write_tiny_qwen2_vl(
    folder: str | Path,
    *,
    seed: int = 0,
    template: str = INSTRUCT_TEMPLATE,
    corpus: Iterable[str] = CORPUS,
    spread: float = 0.02,
    layers: int = 2,
) -> Path:
    """Write model, tokenizer and processor to `folder` and return it.

    Args:
        seed: of the random weights.
        template: the checkpoint's chat template, `INSTRUCT_TEMPLATE` or `BASE_TEMPLATE`.
        corpus: text whose words the tokenizer learns; any other text is spelt in bytes.
        spread: standard deviation of the weights.
        layers: of the language model.
    """
    import transformers

    folder = Path(folder)
    tokenizer = train_tokenizer(corpus)
    tokenizer.chat_template = template
    _save(transformers.Qwen2VLForConditionalGeneration, _config(tokenizer, spread, layers), folder, seed)
    pixels = IMAGE_SIDE * IMAGE_SIDE
    processor = transformers.Qwen2VLProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(min_pixels=pixels, max_pixels=pixels),
        tokenizer=tokenizer,
        video_processor=transformers.Qwen2VLVideoProcessor(),
        chat_template=template,
    )
    processor.save_pretrained(folder)
    return folder


def _save(architecture: Any, config: Any, folder: Path, seed: int) -> None:
    """Write a model of random weights."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        architecture(config).save_pretrained(folder)


def train_tokenizer(corpus: Iterable[str]):  # type: ignore[no-untyped-def]  # transformers is untyped
    """Return a byte-level BPE that learns the words of `corpus` and spells all others; with Qwen's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        [f"{text} {text.lower()}" for text in corpus] * 50,
        trainers.BpeTrainer(
            vocab_size=640,
            special_tokens=list(SPECIAL_TOKENS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return Qwen2TokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
    )


def _config(tokenizer, spread, layers):  # type: ignore[no-untyped-def]  # transformers is untyped
    from transformers import Qwen2VLConfig

    token = {name.strip("<|>"): tokenizer.convert_tokens_to_ids(name) for name in SPECIAL_TOKENS}
    return Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": layers,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 4096,
            "initializer_range": spread,
            "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
            "bos_token_id": token["endoftext"],
            "eos_token_id": token["im_end"],
            "pad_token_id": token["endoftext"],
        },
        vision_config={
            "depth": 2,
            "embed_dim": 64,
            "hidden_size": 128,
            "num_heads": 4,
            "mlp_ratio": 2,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "initializer_range": spread,
        },
        image_token_id=token["image_pad"],
        video_token_id=token["video_pad"],
        vision_start_token_id=token["vision_start"],
        vision_end_token_id=token["vision_end"],
    )


STEP_TOKEN = "<extra_0>"
"""Closes a step, as in Qwen2.5-Math-PRM."""
Kind = Literal["writer", "reward_model", "process_reward"]


def write_tiny_text_model(
    folder: str | Path, kind: Kind, *, seed: int = 0, corpus: Iterable[str] = CORPUS, spread: float = 0.02
) -> Path:
    """Write a Qwen2 and its tokenizer, with the step token and an instruct template, to `folder` and return it.

    Args:
        seed, corpus, spread: as for `write_tiny_qwen2_vl`.
        kind: a causal model, a sequence classifier with one label, or a token classifier with two.
    """
    import transformers

    architectures = {
        "writer": (transformers.Qwen2ForCausalLM, {}),
        "reward_model": (transformers.Qwen2ForSequenceClassification, {"num_labels": 1}),
        "process_reward": (transformers.Qwen2ForTokenClassification, {"num_labels": 2}),
    }
    folder = Path(folder)
    tokenizer = train_tokenizer(corpus)
    tokenizer.add_tokens([STEP_TOKEN], special_tokens=True)
    tokenizer.chat_template = INSTRUCT_TEMPLATE
    architecture, labels = architectures[kind]
    config = transformers.Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=spread,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        **labels,
    )
    _save(architecture, config, folder, seed)
    tokenizer.save_pretrained(folder)
    return folder
