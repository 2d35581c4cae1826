"""A vision encoder and a language model put together to a LLaVA checkpoint (arXiv 2310.03744).

Only the projector between the two is new. The checkpoint is one that transformers, LlamaFactory (`template: llava`) and
every command of this package load.
"""

from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.models.checkpoint import find_checkpoint
from uni_dpo.models.loading import check_dtype, load_class, load_model, one_line
from uni_dpo.storage import read_json

IMAGE_TOKEN = "<image>"
VISION_TYPES = ("clip", "clip_vision_model", "siglip", "siglip_vision_model")

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
"""What LlamaFactory's template `llava` puts first where a conversation has no system prompt of its own."""

CHAT_TEMPLATE = (
    "{%- macro said(content) -%}{%- if content is string -%}{{- content -}}{%- else -%}{%- for item in content -%}"
    "{%- if item['type'] == 'image' -%}<image>{%- else -%}{{- item['text'] -}}{%- endif -%}{%- endfor -%}{%- endif -%}"
    "{%- endmacro -%}"
    "{%- if messages[0]['role'] != 'system' -%}{{- '" + SYSTEM.replace("'", "\\'") + "' -}}{%- endif -%}"
    "{%- for message in messages -%}{%- if message['role'] == 'user' -%}"
    "{{- 'USER: ' + said(message['content']) + ' ASSISTANT:' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- said(message['content']) + eos_token -}}"
    "{%- else -%}{{- said(message['content']) -}}{%- endif -%}{%- endfor -%}"
)
"""The same tokens as LlamaFactory's template `llava`."""


def compose(vision: str, language: str, output: str | Path, *, dtype: str = "auto", seed: int = 0) -> list[str]:
    """Write a LLaVA checkpoint made of a vision encoder and a language model.

    The image features are those of the encoder's last layer but one, as in LLaVA-1.5; a CLIP's class token is left out,
    a SigLIP has none. The projector is two linear layers with GELU between them.

    Args:
        vision: folder or hub name of a CLIP or SigLIP model with its `preprocessor_config.json`.
        language: folder or hub name of a causal language model with its tokenizer.
        output: a folder that is not there yet, or is empty.
        dtype: of the weights: `auto` is the language model's own, or float32, bfloat16, float16.
        seed: of the projector's weights and of the new words' embeddings.

    Returns:
        What was put together, in lines for the user.

    Raises:
        UniDPOError: one of the two is of another kind or cannot be loaded, or `output` holds files.
    """
    folder = Path(output)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UniDPOError(f"{folder}: is there already; name a new folder")
    check_dtype(dtype)
    if (file := Path(vision) / "config.json").is_file():  # refused before anything heavy is imported
        _check_kind(read_json(file).get("model_type"), file)

    import torch
    from transformers import AutoConfig, AutoModel, LlavaConfig, LlavaForConditionalGeneration

    with one_line(vision):
        vision_config = AutoConfig.from_pretrained(vision)
    vision_config = getattr(vision_config, "vision_config", vision_config)
    _check_kind(vision_config.model_type, vision)
    text, tokenizer = _language_model(language, dtype, seed)
    has_class_token = vision_config.model_type.startswith("clip")
    image_tokens = (vision_config.image_size // vision_config.patch_size) ** 2
    config = LlavaConfig(
        vision_config=vision_config.to_dict(),
        text_config=text.config.to_dict(),
        image_token_index=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        image_seq_length=image_tokens,
        vision_feature_select_strategy="default" if has_class_token else "full",
        tie_word_embeddings=text.config.tie_word_embeddings,
        pad_token_id=tokenizer.pad_token_id,
    )
    config.dtype = text.dtype
    with torch.device("meta"):
        model = LlavaForConditionalGeneration(config)
    # The image half of a CLIP or SigLIP, whether the checkpoint holds both halves or that one.
    tower = AutoModel._model_mapping[type(vision_config)]
    model.model.vision_tower = load_class(tower, vision, config=vision_config, dtype=text.dtype)
    model.model.language_model = text.model
    model.lm_head = text.lm_head
    projector = model.model.multi_modal_projector.to_empty(device="cpu").to(text.dtype)
    draw = torch.Generator().manual_seed(seed)
    for name, parameter in projector.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
        else:
            parameter.data.normal_(std=parameter.shape[1] ** -0.5, generator=draw)
    model.generation_config = text.generation_config
    _processor(vision, vision_config, tokenizer, has_class_token).save_pretrained(folder)
    model.save_pretrained(folder)
    seen, words = vision_config.hidden_size, text.config.hidden_size
    new = sum(parameter.numel() for parameter in projector.parameters())
    return [
        f"{folder}: a LLaVA of {seen} vision and {words} language features",
        f"{image_tokens} tokens per image, {text.config.vocab_size:,} words",
        f"{new:,} new weights in the projector {seen} → {words} → {words}",
        "train it first: examples/vision_alignment/pretrain_projector.yaml",
    ]


def _check_kind(kind: Any, said_by: Path | str) -> None:
    if kind not in VISION_TYPES:
        raise UniDPOError(f"vision: {said_by} is of model_type {kind!r}; name a CLIP or SigLIP model")


def _language_model(name: str, dtype: str, seed: int) -> tuple[Any, Any]:
    """The language model with rows for the image and padding tokens, and its tokenizer."""
    import torch
    from transformers import AutoTokenizer

    with one_line(name, "tokenizer of "):
        tokenizer = AutoTokenizer.from_pretrained(name)
    text = load_model(find_checkpoint(name), dtype=dtype, device=None)
    if not hasattr(text, "lm_head") or not hasattr(text, "model"):
        raise UniDPOError(
            f"language: {name} ({text.config.model_type}) is built otherwise than Llama, Mistral and Qwen"
        )
    if hasattr(text.config, "vision_config"):
        raise UniDPOError(f"language: {name} sees images already; name a text model")
    tokenizer.add_tokens([IMAGE_TOKEN], special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
    if len(tokenizer) > text.get_input_embeddings().num_embeddings:
        # New rows are drawn around the mean of the old ones; products with a multiple of 64 rows are faster.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            text.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64, mean_resizing=True)
    _begin_with_the_text(tokenizer)
    return text, tokenizer


def _begin_with_the_text(tokenizer: Any) -> None:
    """Leave out the token that Llama's tokenizers put first: LlamaFactory's template `llava` trains without it."""
    from tokenizers.processors import TemplateProcessing

    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="$A", pair="$A $B", special_tokens=[])
    for name in ("add_bos_token", "add_eos_token"):
        if hasattr(tokenizer, name):
            setattr(tokenizer, name, False)
        if name in tokenizer.init_kwargs:
            tokenizer.init_kwargs[name] = False


def _processor(name: str, config: Any, tokenizer: Any, has_class_token: bool) -> Any:
    from transformers import AutoImageProcessor, LlavaProcessor

    with one_line(name, "image processor of "):
        images = AutoImageProcessor.from_pretrained(name)
    tokenizer.chat_template = CHAT_TEMPLATE
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=config.patch_size,
        vision_feature_select_strategy="default" if has_class_token else "full",
        num_additional_image_tokens=int(has_class_token),
        image_token=IMAGE_TOKEN,
        chat_template=CHAT_TEMPLATE,
    )
