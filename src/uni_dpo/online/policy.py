"""The model that answers: loading it, what of it learns, how it is asked and samples, and what rates its answers."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from uni_dpo.data.faults import shown
from uni_dpo.data.questions import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import Grader, check_references, over_references
from uni_dpo.models.backends.base import Request, RewardModelBackend
from uni_dpo.models.checkpoint import find_checkpoint
from uni_dpo.models.loading import load_processor, load_start
from uni_dpo.models.prompt import detect_style, prompt_of
from uni_dpo.models.rewards.options import RewardModelOptions, find_reward_checkpoint
from uni_dpo.online import OnlineConfig, RewardOptions
from uni_dpo.settings.registry import find
from uni_dpo.shared_prefix.families import unwrapped
from uni_dpo.storage import read_json

VISION_PARTS = ("visual", "vision_tower", "multi_modal_projector")
"""Names of the modules that `freeze_vision_tower` freezes, in the supported families."""


def check_model(config: OnlineConfig) -> None:
    """See that there is a model of the right kind, from its files alone.

    Raises:
        UniDPOError: there is none, or it is damaged.
    """
    checkpoint = find_checkpoint(config.model)
    settings = read_json(checkpoint.base / "config.json")
    if "vision_config" not in settings and "auto_map" not in settings:
        raise UniDPOError(f"model {config.model!r} is a {checkpoint.family}, no vision-language model")


def load_model(config: OnlineConfig) -> tuple[Any, Any]:
    """Load model and processor of `config.model`, in the precision that its learning weights need.

    Raises:
        UniDPOError: the checkpoint cannot be loaded.
    """
    checkpoint = find_checkpoint(config.model)
    trust = config.trust_remote_code
    processor = load_processor(
        checkpoint, min_pixels=config.min_pixels, max_pixels=config.max_pixels, trust_remote_code=trust
    )
    detect_style(processor, config.model)
    model = load_start(checkpoint, config.output_dir, dtype=base_dtype(config), trust_remote_code=trust)
    return model, processor


def base_dtype(config: OnlineConfig) -> torch.dtype:
    """Of the weights on disk; an adapter's own are float32 all the same."""
    return torch.bfloat16 if config.bf16 and config.finetuning == "lora" else torch.float32


def adapter(config: OnlineConfig) -> Any:
    """Return the LoRA adapter of a config, for PEFT."""
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


def messages(question: Question) -> list[dict[str, Any]]:
    """Return a question as the chat template takes it, its images before its text."""
    images = [{"type": "image", "text": None} for _ in question.images]
    system = [{"role": "system", "content": [{"type": "text", "text": question.system}]}] if question.system else []
    return [*system, {"role": "user", "content": [*images, {"type": "text", "text": question.text}]}]


def prompt_text(question: Question, processor: Any) -> str:
    """Render a question in the chat template, up to where the answer begins.

    Raises:
        UniDPOError: the chat template drops the question or an image.
    """
    items = [{"type": "image"} for _ in question.images] + [{"type": "text", "text": question.text}]
    return prompt_of(processor, items, detect_style(processor), question.system or None)


def media_tokens(model: Any) -> list[int]:
    """Give the tokens that stand for what is seen: never to be sampled, for an answer with one could not be scored."""
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = [getattr(unwrapped(model).config, name, None) for name in names]
    return [token for token in tokens if token is not None]


@contextmanager
def plain_sampling(model: Any) -> Iterator[None]:
    """Set the checkpoint's own habits (repetition penalty, top_k, …) aside.

    Transformers takes them for whatever a given `GenerationConfig` leaves open, and the log-probabilities of what
    was sampled would be those of another distribution.
    """
    language = unwrapped(model)
    own = language.generation_config
    language.generation_config = GenerationConfig()
    try:
        yield
    finally:
        language.generation_config = own


Reward = Callable[[Sequence[Question], Sequence[str]], list[float]]
"""Questions and their answers → one reward each."""


def check_reward(options: RewardOptions, questions: Sequence[Question]) -> None:
    """See that a reward is there and can rate answers to these questions, without loading anything.

    Raises:
        UniDPOError: no such reward model or function, or a question without the reference that the function needs.
    """
    if options.model is not None:
        find_reward_checkpoint(_model_settings(options))
        return
    check_references(str(options.function), questions)


def make_reward(options: RewardOptions, *, batch_size: int, trust_remote_code: bool = False) -> Reward:
    """Return the reward that a config names; a reward model sees `batch_size` answers at once.

    Raises:
        UniDPOError: there is no such reward model or function.
    """
    if options.function is not None:
        return graded(over_references(find("grader", options.function)))
    settings = _model_settings(options, batch_size=batch_size, trust_remote_code=trust_remote_code)
    model = RewardModelBackend(settings)

    def rate(questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
        asked = [Request(question.text, question.images, system=question.system or None) for question in questions]
        return list(map(_number, model.rate(asked, answers), answers))

    return rate


def graded(grader: Grader) -> Reward:
    """Return a grader as reward; an answer that it cannot grade earns nothing."""

    def rate(questions: Sequence[Question], answers: Sequence[str]) -> list[float]:
        return [_number(grader(answer, question), answer) for question, answer in zip(questions, answers, strict=True)]

    return rate


def _number(reward: Any, answer: str) -> float:
    """The reward of an answer, 0 for None.

    Raises:
        UniDPOError: it is no finite number, after which every weight would be NaN.
    """
    try:
        number = 0.0 if reward is None else float(reward)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UniDPOError(f"reward: {shown(reward)} for the answer {shown(answer)}; a finite number belongs there")
    return number


def _model_settings(options: RewardOptions, **more: Any) -> RewardModelOptions:
    return RewardModelOptions(Path(str(options.model)), options.template, **more)
