"""Which process reward model a checkpoint is, told from its files before anything heavy is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from uni_dpo.errors import UniDPOError
from uni_dpo.models.rewards.checkpoints import check_folder, own_loader, read_json

LOADERS = ("AutoModelForTokenClassification", "AutoModel")
"""Of transformers, by which a checkpoint with code of its own may be loaded, in the order of preference."""


class ProcessModel(Protocol):
    """Says of every step of an answer how probably it is right."""

    def rate_steps(self, solutions: Sequence[tuple[str, Sequence[str]]]) -> list[list[float]]:
        """P(right) in [0, 1] of every step.

        Args:
            solutions: question and steps of each answer; no answer is without steps.

        Returns:
            Per answer, in order, as many probabilities as it has steps; all from one forward pass.
        """
        ...


@dataclass(frozen=True)
class ProcessModelOptions:
    """How a process reward model is loaded, and how it reads an answer.

    Attributes:
        model: folder of a token classifier with two labels, of which the second says that the step is right.
        step_token: the one token that closes each step, at which the model is read; Qwen2.5-Math-PRM's is
            `<extra_0>`, and TRL trains with a line break unless told otherwise.
        layout: `chat` puts question and steps into the chat template; `plain` sets them side by side, as TRL's
            PRMTrainer does.
        system: the system prompt of `chat`; empty for the template's own.
        dtype: auto, float32, float16 or bfloat16.
        trust_remote_code: run Python code that comes with the checkpoint.
    """

    model: Path
    step_token: str = "<extra_0>"
    layout: Literal["chat", "plain"] = "chat"
    system: str = ""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    trust_remote_code: bool = False


def find_process_loader(options: ProcessModelOptions) -> str:
    """The class of transformers that loads the checkpoint in `options.model`.

    Raises:
        UniDPOError: there is no such folder, it holds no process reward model, or it has no such step token.
    """
    folder = options.model
    check_folder(folder, "name a token classifier that was trained on steps")
    config = read_json(folder / "config.json")
    architectures = [str(name) for name in config.get("architectures") or []]
    plain = any(name.endswith("ForTokenClassification") for name in architectures)
    loader = LOADERS[0] if plain else own_loader(folder, config, LOADERS, options.trust_remote_code)
    if loader is None:
        raise UniDPOError(
            f"{folder}: is no process reward model; its architecture is {', '.join(architectures) or 'not named'}, "
            "no token classifier"
        )
    labels = len(config.get("id2label") or {0: "", 1: ""})
    if plain and labels != 2:
        raise UniDPOError(f"{folder}: is a token classifier of {labels} labels; one for steps has two, wrong and right")
    _check_step_token(folder, options.step_token)
    return loader


def load_process_model(options: ProcessModelOptions) -> ProcessModel:
    """Load the process reward model in `options.model`.

    Raises:
        UniDPOError: there is none, or it cannot be loaded.
    """
    loader = find_process_loader(options)
    from uni_dpo.models.rewards.process import StepClassifier

    try:
        return StepClassifier(loader, options)
    except OSError as error:
        raise UniDPOError(f"{options.model}: cannot be loaded: {error}") from error


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
