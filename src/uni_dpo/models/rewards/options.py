"""What rates answers, told from files: options, checkpoints, and what is rated. Nothing heavy is imported."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol

from annotated_types import Ge

from uni_dpo.data.pair import Image, PreferencePair
from uni_dpo.errors import UniDPOError
from uni_dpo.models.checkpoint import check_weights, find_checkpoint, is_adapter, tensor_names
from uni_dpo.settings.options import Count, Dtype, runtime
from uni_dpo.storage import read_json
from uni_dpo.storage.identity import WEIGHTS, file_stamps

VALUE_HEAD_FILES = ("value_head.safetensors", "value_head.bin")
VALUE_HEAD_WEIGHTS = ("v_head.summary.weight", "v_head.summary.bias")
TEMPLATES = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl", "llava": "llava"}
"""`model_type` → LlamaFactory's template, for families with one template only."""
STEP_LOADERS = ("AutoModelForTokenClassification", "AutoModel")
"""Of transformers, by which a checkpoint with code of its own may be loaded, in the order of preference."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A question with one answer.

    Attributes:
        instruction: the question, one `<image>` per image that stands in it.
        answer: what is rated.
        images: paths or encoded images, in the order of their `<image>`.
        system: the system prompt; empty for the template's own.
        history: earlier turns as (question, answer).
        videos: paths, or lists of frames, in the order of their `<video>`.
    """

    instruction: str
    answer: str
    images: tuple[Image, ...] = ()
    system: str = ""
    history: tuple[tuple[str, str], ...] = ()
    videos: tuple[Any, ...] = ()

    def question(self) -> tuple[str, ...]:
        """Return what is asked, images and videos aside: answers to one question can be rated together."""
        return (self.system, *(text for turn in self.history for text in turn), self.instruction)

    def messages(self) -> list[dict[str, str]]:
        """Return the turns without the system prompt, the rated answer last."""
        turns = [*self.history, (self.instruction, self.answer)]
        return [
            {"role": role, "content": text}
            for turn in turns
            for role, text in zip(("user", "assistant"), turn, strict=True)
        ]


def both_answers(pair: PreferencePair) -> tuple[Conversation, Conversation]:
    """Return the conversation that ends with a pair's chosen answer, and the one that ends with the rejected."""
    before = (pair.images, pair.system, pair.history, pair.videos)
    return Conversation(pair.instruction, pair.chosen, *before), Conversation(pair.instruction, pair.rejected, *before)


class RewardModel(Protocol):
    """Rates answers; the higher the better, on a scale of the model's own."""

    def rate(self, conversations: Sequence[Conversation]) -> list[float]:
        """Return one rating per conversation, in order, in one forward pass; answers to one question may share it."""
        ...


@dataclass(frozen=True)
class RewardModelOptions:
    """Settings of a `reward_model`: how it is loaded.

    Attributes:
        model: the output_dir of a `stage: rm` run, or a sequence classifier.
        template: LlamaFactory's template, as in the training; without it the only one of the family.
        image_max_pixels, image_min_pixels: LlamaFactory's limit, as in the training.
        dtype: how the weights are held; auto is the checkpoint's own.
        trust_remote_code: run Python code that comes with the checkpoint.
        batch_size: answers in one forward pass.
    """

    model: Path
    template: str | None = None
    image_max_pixels: Count = 768 * 768
    image_min_pixels: Annotated[int, Ge(0)] = 32 * 32
    dtype: Dtype = "auto"
    trust_remote_code: bool = False
    batch_size: Count = runtime(8)
    shows_videos: ClassVar[tuple[str, ...]] = ("file", "frames")

    def check(self, *, images: bool) -> None:
        """Raise a UniDPOError where it cannot rate questions, with `images` (or videos) or without."""
        if find_reward_checkpoint(self).kind == "classifier" and images:
            raise UniDPOError(
                f"{self.model}: a sequence classifier sees no images or videos, and the questions have some; take a "
                "reward model that LlamaFactory trained (stage: rm)"
            )


@dataclass(frozen=True)
class RewardCheckpoint:
    """A reward model's files.

    Attributes:
        kind: a language model with LlamaFactory's value head, or a sequence classifier with one label.
        base: folder or hub name of the full weights.
        adapter: folder of the LoRA adapter that lies on them.
        template: LlamaFactory's template; empty for a classifier, which has a chat template.
    """

    kind: Literal["value_head", "classifier"]
    base: str
    adapter: Path | None = None
    template: str = ""


def find_reward_checkpoint(options: RewardModelOptions) -> RewardCheckpoint:
    """Return what `options.model` is.

    Raises:
        UniDPOError: there is no such folder, or it holds no reward model.
    """
    folder = options.model
    check_folder(folder, "name the output_dir of a run with `stage: rm`, or a checkpoint that you downloaded")
    adapter = is_adapter(folder)
    if any((folder / name).is_file() for name in VALUE_HEAD_FILES):
        _check_value_head(folder)
        found = find_checkpoint(folder)
        family = found.family
        template = options.template or TEMPLATES.get(family)
        if template is None:
            raise UniDPOError(f"{folder}: which template was this {family or 'model'} trained with? Give --template")
        return RewardCheckpoint("value_head", str(found.base), found.adapter, template)
    config = read_json((find_checkpoint(folder).base if adapter else folder) / "config.json")
    loaders = ("AutoModelForSequenceClassification",)
    loader, labels, architecture = _classifier(folder, config, loaders, options.trust_remote_code)
    if loader is None:
        raise UniDPOError(
            f"{folder}: is no reward model. It has no {VALUE_HEAD_FILES[0]}, as LlamaFactory writes it with "
            f"`stage: rm`, and its architecture is {architecture}, no sequence classifier"
        )
    if adapter:
        raise UniDPOError(f"{folder}: is an adapter on a sequence classifier; merge it into its base first")
    if labels not in (None, 1):
        raise UniDPOError(f"{folder}: is a classifier of {labels} labels; a reward model has one")
    check_weights(folder)
    return RewardCheckpoint("classifier", str(folder))


@dataclass(frozen=True)
class ProcessModelOptions:
    """Settings of a `process_reward` model: how it is loaded, and how it reads an answer.

    Attributes:
        model: folder of a token classifier with two labels, of which the second says that the step is right.
        step_token: the one token that closes each step, at which the model is read; Qwen2.5-Math-PRM's is
            `<extra_0>`, and TRL trains with a line break unless told otherwise.
        layout: `chat` puts question and steps into the chat template; `plain` sets them side by side, as TRL's
            PRMTrainer does.
        system: the system prompt of `chat`; empty for the template's own.
        dtype: auto, float32, float16 or bfloat16.
        trust_remote_code: run Python code that comes with the checkpoint.
        batch_size: answers in one forward pass.
    """

    model: Path
    step_token: str = "<extra_0>"
    layout: Literal["chat", "plain"] = "chat"
    system: str = ""
    dtype: Dtype = "auto"
    trust_remote_code: bool = False
    batch_size: Count = runtime(8)

    def check(self, *, images: bool) -> None:
        """See `RewardModelOptions.check`."""
        find_process_loader(self)
        if images:
            raise UniDPOError(
                f"{self.model}: a process reward model sees no images or videos, and the questions have some"
            )


def find_process_loader(options: ProcessModelOptions) -> str:
    """Return the class of transformers that loads the checkpoint in `options.model`.

    Raises:
        UniDPOError: there is no such folder, it holds no process reward model, or it has no such step token.
    """
    folder = options.model
    check_folder(folder, "name a token classifier that was trained on steps")
    config = read_json(folder / "config.json")
    loader, labels, architecture = _classifier(folder, config, STEP_LOADERS, options.trust_remote_code)
    if loader is None:
        raise UniDPOError(
            f"{folder}: is no process reward model; its architecture is {architecture}, no token classifier"
        )
    if labels not in (None, 2):
        raise UniDPOError(f"{folder}: is a token classifier of {labels} labels; one for steps has two, wrong and right")
    _check_step_token(folder, options.step_token)
    check_weights(folder)
    return loader


def _check_value_head(folder: Path) -> None:
    """See that the head is whole: LlamaFactory rates with one drawn at random where it cannot read it."""
    file = folder / VALUE_HEAD_FILES[0]
    if not file.is_file():
        return  # a pickle, which the loading reads and checks
    check_weights(folder, "value_head")
    if missing := [name for name in VALUE_HEAD_WEIGHTS if name not in tensor_names(file)]:
        raise UniDPOError(f"{file}: holds no value head; {missing[0]} is missing")


def checkpoint_identity(options: RewardModelOptions) -> list[Any]:
    """Return what tells one reward model from another: its settings, and names, sizes and times of its files."""
    told = file_stamps(options.model, (*WEIGHTS, ".json"))
    return [*told, options.template, options.image_max_pixels, options.image_min_pixels, options.dtype]


def check_folder(folder: Path, advice: str) -> None:
    """Raise a UniDPOError where there is no such folder."""
    if not folder.is_dir():
        raise UniDPOError(f"{folder}: there is no such folder; {advice}")


def _classifier(
    folder: Path, config: Mapping[str, Any], loaders: Sequence[str], trusted: bool
) -> tuple[str | None, int | None, str]:
    """Which of transformers' `loaders` reads a classifier; how many labels it has; its architecture, for messages.

    One without code of its own is read by the first, or by none. What one with such code has for labels is not known.
    """
    architectures = [str(name) for name in config.get("architectures") or []]
    named = ", ".join(architectures) or "not named"
    if any(name.endswith(loaders[0].removeprefix("AutoModel")) for name in architectures):
        return loaders[0], len(config.get("id2label") or {0: "", 1: ""}), named
    own = config.get("auto_map") or {}
    found = next((name for name in loaders if name in own), None)
    if found and not trusted:
        raise UniDPOError(
            f"{folder}: comes with Python code of its own ({own[found]}), which runs only with trust_remote_code"
        )
    return found, None, named


def _check_step_token(folder: Path, token: str) -> None:
    """Several tokens would do no harm to the code; but the model was then trained with another step token."""
    from tokenizers import Tokenizer

    file = folder / "tokenizer.json"
    if not file.is_file():
        raise UniDPOError(f"{folder}: has no tokenizer.json")
    pieces = Tokenizer.from_file(str(file)).encode(token, add_special_tokens=False).tokens
    if len(pieces) != 1:
        raise UniDPOError(
            f"{folder}: the step token {token!r} is {len(pieces)} tokens to this model; name the one with which it was "
            "trained (step_token)"
        )
