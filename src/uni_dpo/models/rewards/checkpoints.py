"""Which reward model a checkpoint is, told from its files before anything heavy is loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from uni_dpo.errors import UniDPOError
from uni_dpo.models.rewards.conversation import Conversation
from uni_dpo.storage.identity import WEIGHTS, file_stamps

VALUE_HEAD_FILES = ("value_head.safetensors", "value_head.bin")
TEMPLATES = {"qwen2_vl": "qwen2_vl", "qwen2_5_vl": "qwen2_vl", "llava": "llava"}
"""`model_type` → LlamaFactory's template, for families with one template only."""


class RewardModel(Protocol):
    """Rates answers; the higher the better, on a scale of the model's own."""

    def rate(self, conversations: Sequence[Conversation]) -> list[float]:
        """One rating per conversation, in order, in one forward pass."""
        ...


@dataclass(frozen=True)
class RewardModelOptions:
    """How a reward model is loaded.

    Attributes:
        model: folder of the checkpoint, or of a LoRA adapter that LlamaFactory trained.
        template: LlamaFactory's template that the model was trained with; None takes the family's only one.
        image_max_pixels, image_min_pixels: LlamaFactory's limits of the training.
        dtype: auto, float32, float16 or bfloat16.
        trust_remote_code: run Python code that comes with the checkpoint.
    """

    model: Path
    template: str | None = None
    image_max_pixels: int = 768 * 768
    image_min_pixels: int = 32 * 32
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    trust_remote_code: bool = False


@dataclass(frozen=True)
class RewardCheckpoint:
    """A reward model's files.

    Attributes:
        kind: a language model with LlamaFactory's value head, or a sequence classifier with one label.
        base: folder or hub name of the full weights.
        adapter: folder of the LoRA adapter that lies on them, or None.
        template: LlamaFactory's template; empty for a classifier, which has a chat template.
    """

    kind: Literal["value_head", "classifier"]
    base: str
    adapter: Path | None = None
    template: str = ""


def find_reward_checkpoint(options: RewardModelOptions) -> RewardCheckpoint:
    """What `options.model` is.

    Raises:
        UniDPOError: there is no such folder, or it holds no reward model.
    """
    folder = options.model
    check_folder(folder, "name the output_dir of a run with `stage: rm`, or a checkpoint that you downloaded")
    adapter = read_json(folder / "adapter_config.json")
    base = str(adapter.get("base_model_name_or_path", folder))
    config = read_json(Path(base) / "config.json")
    if any((folder / name).is_file() for name in VALUE_HEAD_FILES):
        family = str(config.get("model_type", ""))
        template = options.template or TEMPLATES.get(family)
        if template is None:
            raise UniDPOError(f"{folder}: which template was this {family or 'model'} trained with? Give --template")
        return RewardCheckpoint("value_head", base, folder if adapter else None, template)
    architectures = [str(name) for name in config.get("architectures") or []]
    plain = any(name.endswith("ForSequenceClassification") for name in architectures)
    if not plain and not own_loader(folder, config, ("AutoModelForSequenceClassification",), options.trust_remote_code):
        raise UniDPOError(
            f"{folder}: is no reward model. It has no {VALUE_HEAD_FILES[0]}, as LlamaFactory writes it with "
            f"`stage: rm`, and its architecture is {', '.join(architectures) or 'not named'}, no sequence classifier"
        )
    if adapter:
        raise UniDPOError(f"{folder}: is an adapter on a sequence classifier; merge it into its base first")
    labels = len(config.get("id2label") or {0: "", 1: ""})
    if plain and labels != 1:
        raise UniDPOError(f"{folder}: is a classifier of {labels} labels; a reward model has one")
    return RewardCheckpoint("classifier", base)


def load_reward_model(options: RewardModelOptions) -> RewardModel:
    """Load the reward model in `options.model`.

    Raises:
        UniDPOError: there is none, or it cannot be loaded.
    """
    checkpoint = find_reward_checkpoint(options)
    try:
        if checkpoint.kind == "value_head":
            from uni_dpo.models.rewards.value_head import ValueHeadModel

            return ValueHeadModel(checkpoint, options)
        from uni_dpo.models.rewards.classifier import SequenceClassifier

        return SequenceClassifier(checkpoint, options)
    except OSError as error:
        raise UniDPOError(f"{options.model}: cannot be loaded: {error}") from error


def checkpoint_identity(options: RewardModelOptions) -> list[Any]:
    """What tells one reward model from another without reading its weights: names, sizes and times of its files."""
    told = file_stamps(options.model, (*WEIGHTS, ".json"))
    return [*told, options.template, options.image_max_pixels, options.image_min_pixels, options.dtype]


def check_folder(folder: Path, advice: str) -> None:
    """Raise a UniDPOError where there is no such folder."""
    if not folder.is_dir():
        raise UniDPOError(f"{folder}: there is no such folder; {advice}")


def own_loader(folder: Path, config: Mapping[str, Any], loaders: Sequence[str], trusted: bool) -> str | None:
    """Which of transformers' `loaders` a checkpoint with code of its own names for itself.

    Returns:
        None for a checkpoint without such code, which the library's own classes read.

    Raises:
        UniDPOError: there is such code, and the user has not said that it may run.
    """
    own = config.get("auto_map") or {}
    found = next((name for name in loaders if name in own), None)
    if found and not trusted:
        raise UniDPOError(
            f"{folder}: comes with Python code of its own ({own[found]}), which runs only with trust_remote_code"
        )
    return found


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a JSON file; empty where there is no file."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UniDPOError(f"{path}: is not JSON ({error})") from error
    return content if isinstance(content, dict) else {}
