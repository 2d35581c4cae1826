"""The model that answers: loading it, what of it learns, how it is asked, and how it samples."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, GenerationConfig

from uni_dpo.data.questions import Question
from uni_dpo.errors import UniDPOError, naming_the_model
from uni_dpo.online.config import OnlineConfig

VISION_PARTS = ("visual", "vision_tower", "multi_modal_projector")
"""Names of the modules that `freeze_vision_tower` freezes, in the supported families."""

MEDIA_TOKENS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
"""Names, in a model's config, of the tokens that stand for what is seen."""


def check_model(config: OnlineConfig) -> None:
    """See that there is a model of the right kind, from its configuration alone.

    Raises:
        UniDPOError: there is none.
    """
    with naming_the_model(config.model):
        found = AutoConfig.from_pretrained(config.model, trust_remote_code=config.trust_remote_code)
    if type(found) not in AutoModelForImageTextToText._model_mapping and not config.trust_remote_code:
        raise UniDPOError(f"model {config.model!r} is a {found.model_type}, no vision-language model")


def load_model(config: OnlineConfig) -> tuple[Any, Any]:
    """Model and processor of `config.model`, in the precision that its learning weights need.

    Raises:
        UniDPOError: the checkpoint cannot be loaded.
    """
    trust = {"trust_remote_code": config.trust_remote_code}
    limits = {"min_pixels": config.min_pixels, "max_pixels": config.max_pixels}
    with naming_the_model(config.model):
        model = AutoModelForImageTextToText.from_pretrained(config.model, dtype=base_dtype(config), **trust)
        processor = AutoProcessor.from_pretrained(
            config.model, **{name: value for name, value in limits.items() if value is not None}, **trust
        )
    if processor.tokenizer.pad_token_id is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return model, processor


def base_dtype(config: OnlineConfig) -> torch.dtype:
    """Of the weights on disk; an adapter's own are float32 all the same."""
    return torch.bfloat16 if config.bf16 and config.finetuning == "lora" else torch.float32


def adapter(config: OnlineConfig) -> Any:
    """The LoRA adapter of a config, for PEFT."""
    from peft import LoraConfig

    vision = "|".join(VISION_PARTS)
    return LoraConfig(
        r=config.lora_rank,
        lora_alpha=config.lora_alpha,
        target_modules="all-linear",
        exclude_modules=rf".*\b({vision})\b.*" if config.freeze_vision_tower else None,
        task_type="CAUSAL_LM",
    )


def freeze_vision_tower(model: Any) -> None:
    """Let every weight learn but those of the vision tower and the projector."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not any(part in name for part in VISION_PARTS))


def language_model(model: Any) -> Any:
    """`model` without the adapter around it."""
    return model.get_base_model() if hasattr(model, "peft_config") else model


def messages(question: Question) -> list[dict[str, Any]]:
    """A question as the chat template takes it, its images before its text."""
    images = [{"type": "image", "text": None} for _ in question.images]
    return [{"role": "user", "content": [*images, {"type": "text", "text": question.text}]}]


def prompt_text(question: Question, processor: Any) -> str:
    """A question in the chat template, up to where the answer begins.

    Raises:
        UniDPOError: the chat template drops the question.
    """
    text = str(processor.apply_chat_template(messages(question), tokenize=False, add_generation_prompt=True))
    if question.text.strip() not in text:
        raise UniDPOError("the policy's chat template drops the question; take the instruct checkpoint")
    return text


def media_tokens(model: Any) -> list[int]:
    """The tokens that stand for what is seen: never to be sampled, for an answer with one could not be scored."""
    tokens = [getattr(language_model(model).config, name, None) for name in MEDIA_TOKENS]
    return [token for token in tokens if token is not None]


@contextmanager
def plain_sampling(model: Any) -> Iterator[None]:
    """Set the checkpoint's own habits (repetition penalty, top_k, …) aside.

    Transformers takes them for whatever a given `GenerationConfig` leaves open, and the log-probabilities of what
    was sampled would be those of another distribution.
    """
    language = language_model(model)
    own = language.generation_config
    language.generation_config = GenerationConfig()
    try:
        yield
    finally:
        language.generation_config = own
