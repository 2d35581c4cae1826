"""Names in a config → classes. Built-in names are resolved on first use, so nothing heavy is imported early.

A backend, a pipeline or a grader is built in by being a file in its folder: `models/backends/NAME.py` with `BACKEND`,
`engine/pipelines/NAME.py` with `PIPELINE`, `graders/NAME.py` with a function NAME.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.storage.identity import file_digest

Kind = Literal["backend", "sampler", "checker", "grader", "pipeline"]
T = TypeVar("T")

_PACKAGE = Path(__file__).parents[1]
_FOLDERS: dict[Kind, tuple[str, str]] = {
    "backend": ("models/backends", "BACKEND"),
    "grader": ("graders", ""),
    "pipeline": ("engine/pipelines", "PIPELINE"),
}
"""Kind → its folder, and what its files call the thing; nothing where it has the file's name."""
_known: dict[Kind, dict[str, Any]] = {
    "backend": {
        "reward_model": "uni_dpo.models.backends.base:RewardModelBackend",
        "process_reward": "uni_dpo.models.backends.base:ProcessRewardBackend",
    },
    "sampler": {
        "model": "uni_dpo.engine.samplers:ModelSampler",
        "given": "uni_dpo.engine.samplers:GivenSampler",
    },
    "checker": {"first_token": "uni_dpo.engine.asking:FirstTokenChecker"},
    "grader": {
        "exact": "uni_dpo.graders.grading:exact",
        "math": "uni_dpo.graders.mathematics:grade",
    },
    "pipeline": {},
}

_plugin_files: dict[str, str] = {}
"""Module → the file that `load_plugins` made it from."""


def register(kind: Kind, name: str) -> Callable[[T], T]:
    """Make a class (or, for a grader, a function) known to configs under `name`; use it as a decorator."""

    def remember(thing: T) -> T:
        _known[kind][name] = thing
        return thing

    return remember


def find(kind: Kind, name: str) -> Any:
    """Return what is registered as `name`, or what the dotted form `package.module:Thing` leads to.

    Raises:
        UniDPOError: nothing has that name; the message lists what has.
    """
    thing = _known[kind].get(name) or (name if ":" in name else _in_folder(kind).get(name))
    if thing is None:
        hint = did_you_mean(name, names(kind)) or f"; known: {', '.join(names(kind))}"
        raise UniDPOError(f"no {kind} is called {name!r}{hint}")
    if not isinstance(thing, str):
        return thing
    module, _, attribute = thing.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise UniDPOError(f"{kind} {name!r}: the Python module {error.name!r} is not installed") from error
    except AttributeError as error:
        raise UniDPOError(f"{kind} {name!r}: {module} has no {attribute!r}") from error


def own_code(thing: Any) -> str | None:
    """Return what the file is known by that a user's own thing is written in; None where the thing is built in."""
    module = str(getattr(thing, "__module__", ""))
    if module.startswith("uni_dpo."):
        return None
    file = _plugin_files.get(module) or getattr(sys.modules.get(module), "__file__", None)
    return None if file is None else file_digest(file)[:16]


def names(kind: Kind) -> list[str]:
    """List the names that are known."""
    return sorted({*_known[kind], *_in_folder(kind)})


def _in_folder(kind: Kind) -> dict[str, str]:
    """The things of a kind that are files of its folder: name → `package.module:Thing`."""
    folder, constant = _FOLDERS.get(kind, ("", ""))
    found = {}
    for file in sorted((_PACKAGE / folder).glob("*.py")) if folder else ():
        thing, begins = (constant, f"\n{constant} = ") if constant else (file.stem, f"\ndef {file.stem}(")
        if begins in file.read_text(encoding="utf-8"):
            found[file.stem] = f"uni_dpo.{folder.replace('/', '.')}.{file.stem}:{thing}"
    return found


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
        _plugin_files[f"uni_dpo_plugin_{path.stem}"] = str(path)
        spec = importlib.util.spec_from_file_location(f"uni_dpo_plugin_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
