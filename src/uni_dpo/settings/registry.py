"""Names in a config → classes. Built-in names are resolved on first use, so nothing heavy is imported early."""

import importlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from uni_dpo.errors import UniDPOError

Kind = Literal["backend", "sampler", "checker", "grader", "pipeline"]
T = TypeVar("T")

_ENGINE = "uni_dpo.engine"
_BACKENDS = "uni_dpo.models.backends"
_GRADERS = "uni_dpo.graders"
_known: dict[Kind, dict[str, Any]] = {
    "backend": {
        "transformers": f"{_BACKENDS}.transformers:TransformersBackend",
        "openai": f"{_BACKENDS}.openai:OpenAIBackend",
        "vllm": f"{_BACKENDS}.vllm:VLLMBackend",
        "reward_model": f"{_BACKENDS}.base:RewardModelBackend",
        "process_reward": f"{_BACKENDS}.base:ProcessRewardBackend",
    },
    "sampler": {"model": f"{_ENGINE}.samplers:ModelSampler", "given": f"{_ENGINE}.samplers:GivenSampler"},
    "checker": {"first_token": f"{_ENGINE}.asking:FirstTokenChecker"},
    "grader": {
        "exact": f"{_GRADERS}.grading:exact",
        "numeric": f"{_GRADERS}.numeric:numeric",
        "multiple_choice": f"{_GRADERS}.multiple_choice:multiple_choice",
        "math": f"{_GRADERS}.mathematics:grade",
        "vqa": f"{_GRADERS}.vqa:vqa",
    },
    "pipeline": {
        name: f"{_ENGINE}.pipelines.{name}:PIPELINE"
        for name in ("divide_and_conquer", "dpo_reward", "judge", "process_reward", "reward_model", "verifiable")
    },
}


def register(kind: Kind, name: str) -> Callable[[T], T]:
    """Make a class (or, for a grader, a function) known to configs under `name`; use it as a decorator."""

    def remember(thing: T) -> T:
        _known[kind][name] = thing
        return thing

    return remember


def find(kind: Kind, name: str) -> Any:
    """What is registered as `name`, or what the dotted form `package.module:Thing` leads to.

    Raises:
        UniDPOError: nothing has that name; the message lists what has.
    """
    thing = _known[kind].get(name, name if ":" in name else None)
    if thing is None:
        raise UniDPOError(f"no {kind} is called {name!r}; known: {', '.join(names(kind))}")
    if not isinstance(thing, str):
        return thing
    module, _, attribute = thing.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UniDPOError(f"{kind} {name!r}: the Python module {error.name!r} is not installed") from error
    except AttributeError as error:
        raise UniDPOError(f"{kind} {name!r}: {module} has no {attribute!r}") from error


def names(kind: Kind) -> list[str]:
    """List the names that are known."""
    return sorted(_known[kind])


def load_plugins(plugins: tuple[str, ...]) -> None:
    """Import the user's files (`.py` paths) or modules (dotted names), which register what they define."""
    for plugin in plugins:
        if not plugin.endswith(".py"):
            try:
                importlib.import_module(plugin)
            except ModuleNotFoundError as error:
                raise UniDPOError(f"plugins: the Python module {error.name!r} is not installed") from error
            continue
        path = Path(plugin)
        if not path.is_file():
            raise UniDPOError(f"plugins: there is no file {plugin}")
        spec = importlib.util.spec_from_file_location(f"uni_dpo_plugin_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
