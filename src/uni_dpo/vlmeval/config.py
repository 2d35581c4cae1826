"""The configuration file: VLMEvalKit's `{"model": {…}, "data": {…}}`, with a few keys more."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.vlmeval.settings import ModelSettings

KINDS = {"mcq": "MCQ", "y/n": "Y/N", "yes/no": "Y/N", "yorn": "Y/N", "vqa": "VQA"}
"""How a user may write the type of their own data, and VLMEvalKit's name for it."""
WORDINGS = ("benchmark", "plain")
_MODEL_CLASS = "Qwen2VLChat"


@dataclass(frozen=True)
class Benchmark:
    """One entry under `data`."""

    name: str
    """Its key: the name in files and in the table."""
    dataset: str
    """VLMEvalKit's name of the benchmark, or the name of a TSV in `LMUData`."""
    class_name: str | None = None
    path: Path | None = None
    """A TSV of the user's own."""
    kind: str | None = None
    """Type of the user's own data: MCQ, Y/N or VQA; found out where not given."""
    image_root: Path | None = None
    """Where `image_path` of the user's own data starts, and must stay."""
    prompt: str = "benchmark"
    """Worded as VLMEvalKit words a benchmark of that type, or the `plain` question."""


@dataclass(frozen=True)
class Config:
    """What to evaluate on what."""

    models: Mapping[str, ModelSettings]
    benchmarks: Mapping[str, Benchmark]


def read_config(path: str | Path, names: Sequence[str] = (), overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a configuration file.

    Args:
        path: the JSON file. Paths of the user's own data in it are relative to its folder.
        names: the benchmarks to keep; one that is not in the file is taken by VLMEvalKit's name or as a TSV in
            `LMUData`. All that the file names when empty.
        overrides: model settings that take the place of the file's, for every model.

    Raises:
        UniDPOError: no such file, not JSON, or an entry that cannot be understood.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UniDPOError(f"cannot read the configuration {path}: {error.strerror}") from error
    except ValueError as error:
        raise UniDPOError(f"{path} is not JSON: {error}") from error
    for section in ("model", "data"):
        if not isinstance(content, dict) or not isinstance(content.get(section), dict):
            raise UniDPOError(f'{path}: no object under "{section}"; expected {{"model": {{…}}, "data": {{…}}}}')
    models = {
        name: _model(name, entry, overrides or {}, f"{path}: model {name!r}")
        for name, entry in content["model"].items()
    }
    listed = {
        name: parse_benchmark(name, entry, f"{path}: data {name!r}", path.parent)
        for name, entry in content["data"].items()
    }
    benchmarks = {name: listed.get(name) or Benchmark(name, name) for name in names} if names else listed
    for section, entries in (("model", models), ("data", benchmarks)):
        if not entries:
            raise UniDPOError(f'{path}: nothing under "{section}"')
    return Config(models, benchmarks)


def _model(name: str, entry: Any, overrides: Mapping[str, Any], where: str) -> ModelSettings:
    _check_name(name, where)
    if not isinstance(entry, dict):
        raise UniDPOError(f"{where}: expected an object, found {entry!r}")
    if (class_name := entry.get("class", _MODEL_CLASS)) != _MODEL_CLASS:
        raise UniDPOError(
            f"{where}: unknown class {class_name!r}; this command evaluates {_MODEL_CLASS}, "
            "other models run with VLMEvalKit's own run.py"
        )
    return ModelSettings.parse({**entry, **overrides}, where)


def parse_benchmark(name: str, entry: Any, where: str, folder: Path) -> Benchmark:
    """Check the entry of one benchmark.

    Args:
        name: its key.
        entry: `class`, `dataset`, and for own data `path`, `type`, `image_root`, `prompt`.
        where: what an error calls the entry.
        folder: where relative paths start.

    Raises:
        UniDPOError: an unknown key or value.
    """
    _check_name(name, where)
    if not isinstance(entry, dict):
        raise UniDPOError(f"{where}: expected an object, found {entry!r}")
    known = {"class", "dataset", "path", "type", "image_root", "prompt"}
    for key, value in entry.items():
        if key not in known:
            raise UniDPOError(f"{where}: unknown key {key!r}{did_you_mean(key, known)}")
        if not isinstance(value, str):
            raise UniDPOError(f"{where}: {key} is {value!r}, which is not a text")
    kind = entry.get("type")
    if kind is not None and kind.lower() not in KINDS:
        raise UniDPOError(f"{where}: type is {kind!r}; it can be MCQ, yes/no or VQA")
    if (prompt := entry.get("prompt", "benchmark")) not in WORDINGS:
        raise UniDPOError(f"{where}: prompt is {prompt!r}; it can be {' or '.join(WORDINGS)}")
    return Benchmark(
        name=name,
        dataset=entry.get("dataset", name),
        class_name=entry.get("class"),
        path=folder / entry["path"] if "path" in entry else None,
        kind=KINDS[kind.lower()] if kind else None,
        image_root=folder / entry["image_root"] if "image_root" in entry else None,
        prompt=prompt,
    )


def _check_name(name: str, where: str) -> None:
    if not name or name.startswith(".") or any(character in name for character in "/\\\0"):
        raise UniDPOError(f"{where}: the name becomes a file name, so it can hold no slash and no leading dot")


def describe(benchmark: Benchmark) -> dict[str, str]:
    """What of the entry an answer depends on, for the fingerprint."""
    return {
        field.name: str(value)
        for field in dataclasses.fields(benchmark)
        if field.name in ("dataset", "class_name", "kind", "prompt") and (value := getattr(benchmark, field.name))
    }
