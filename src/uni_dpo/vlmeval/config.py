"""The configuration file: VLMEvalKit's `{"model": {…}, "data": {…}}`, with a few keys more."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from annotated_types import Ge, Gt, Le

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Sampling
from uni_dpo.models.backends.settings import without_secrets
from uni_dpo.settings.options import Count, NotNegative, Positive, Seed, TopP, named, parse
from uni_dpo.settings.reading import FaultCollector, SettingsError, located, override, read_mapping
from uni_dpo.settings.schema import Schema, object_schema, schema_of

KINDS = {"mcq": "MCQ", "y/n": "Y/N", "yes/no": "Y/N", "yorn": "Y/N", "vqa": "VQA"}
"""How a user may write the type of their own data, and VLMEvalKit's name for it."""
MODEL_CLASSES: Mapping[str, Mapping[str, Any]] = {
    "Qwen2VLChat": {},
    "Qwen3VLChat": {"max_new_tokens": 32768, "top_p": 0.8, "top_k": 20},
}
"""VLMEvalKit's classes that word the questions → what one sets that `ModelSettings` sets otherwise."""


@dataclass(frozen=True)
class ModelSettings:
    """One model, as VLMEvalKit's `Qwen2VLChat` or `Qwen3VLChat` takes it, with what this adapter adds.

    Names and defaults are VLMEvalKit's, but for sampling: this adapter is greedy unless `do_sample` is set.

    Attributes:
        model_path: folder or hub name; for `openai` the name under which the server knows the model.
        adapter: a LoRA adapter to lay on `model_path`.
        seed: of the draws when `do_sample` is set.
        class_name: `Qwen2VLChat` or `Qwen3VLChat`: who words the questions; either takes every checkpoint.
        use_custom_prompt: word each benchmark's question as that class words it.
        post_process: keep only what stands in the answer's last `\\boxed{…}`.
        device_map: spread one model over several devices (`auto`) instead of placing it on one.
        trust_remote_code: run Python code that comes with the checkpoint.
        base_url: of an OpenAI-compatible server, up to and with `/v1`.
        concurrency: requests at once to that server.
        timeout: seconds that one such request may take.
        join_parts: take the text parts of an answer of that server that is a list of parts together.
        gpu_utils: VLMEvalKit's name for the share of a GPU's memory that vLLM may take.
        vllm: more arguments for `vllm.LLM`.
    """

    model_path: str
    class_name: Literal["Qwen2VLChat", "Qwen3VLChat"] = named("class", "Qwen2VLChat")
    adapter: str | None = None
    backend: Literal["transformers", "vllm", "openai"] = "transformers"
    prompt_style: Literal["auto", "instruct", "base"] = "auto"
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    total_pixels: Count | None = None
    max_new_tokens: Count = 2048
    do_sample: bool = False
    temperature: NotNegative = 0.01
    top_p: TopP = 0.001
    top_k: Annotated[int, Ge(0)] = 1
    repetition_penalty: Positive = 1.0
    seed: Seed = 0
    use_custom_prompt: bool = True
    system_prompt: str | None = None
    post_process: bool = False
    verbose: bool = False
    fps: Positive | None = 2
    nframe: Count | None = 128
    device: str | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = None
    attn_implementation: str | None = None
    device_map: str | None = None
    trust_remote_code: bool = False
    base_url: str | None = None
    concurrency: Count = 16
    timeout: Positive = 600
    join_parts: bool = False
    gpu_utils: Annotated[float, Gt(0), Le(1)] | None = None
    vllm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.model_path:
            raise SettingsError([("model_path", "is empty; name a folder or a hub name")])
        if self.backend == "openai" and not self.base_url:
            raise SettingsError([("base_url", "backend openai needs it, such as http://localhost:8000/v1")])
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise SettingsError([("min_pixels", f"{self.min_pixels} is above max_pixels {self.max_pixels}")])

    @classmethod
    def parse(cls, options: Mapping[str, Any], where: str = "model") -> Self:
        """Check the entry of one model, in which VLMEvalKit's `use_vllm` is understood, and fill in the rest.

        Raises:
            SettingsError: every unknown key, and every value of another type or out of range.
        """
        given = {**MODEL_CLASSES.get(str(options.get("class")), {}), **options}
        if given.pop("use_vllm", False):
            given["backend"] = "vllm"
        settings = parse(cls, given, where)
        # A whole number stays one: an answer's fingerprint has it as it was written.
        whole: dict[str, Any] = {key: value for key, value in given.items() if isinstance(value, int)}
        return replace(settings, **whole)

    def sampling(self) -> Sampling:
        """Give the settings of the draws; greedy unless `do_sample` is set."""
        shared: dict[str, Any] = {"max_tokens": self.max_new_tokens, "repetition_penalty": self.repetition_penalty}
        if not self.do_sample:
            return Sampling(temperature=0.0, **shared)
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, **shared)

    def identity(self) -> dict[str, Any]:
        """Give the settings on which an answer can depend: the others (speed, verbosity) leave it as it is."""
        speed_only = {"verbose", "concurrency", "timeout", "model_path", "adapter", "gpu_utils"}
        return {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in vars(self).items()
            if name not in speed_only
            and not (name == "join_parts" and not value)
            and not (name == "class_name" and value == "Qwen2VLChat")
        } | ({"base_url": without_secrets(self.base_url)} if self.base_url else {})


@dataclass(frozen=True)
class Benchmark:
    """One entry under `data`.

    Attributes:
        name: its key: the name in files and in the table.
        dataset: VLMEvalKit's name of the benchmark, or the name of a TSV in `LMUData`; the key where not given.
        class_name: VLMEvalKit's class of the benchmark.
        path: a TSV of the user's own.
        kind: type of the user's own data; found out where not given.
        image_root: where `image_path` of the user's own data starts, and must stay.
        prompt: worded as VLMEvalKit words a benchmark of that type, or the `plain` question.
    """

    name: str = named(None, "")
    dataset: str = ""
    class_name: str | None = named("class", None)
    path: Path | None = None
    kind: Literal["MCQ", "Y/N", "VQA", "yes/no"] | None = named("type", None)
    image_root: Path | None = None
    prompt: Literal["benchmark", "plain"] = "benchmark"


@dataclass(frozen=True)
class Sections:
    """The file as it is: name → entry."""

    model: Mapping[str, Any]
    data: Mapping[str, Any]


@dataclass(frozen=True)
class Config:
    """What to evaluate on what."""

    models: Mapping[str, ModelSettings]
    benchmarks: Mapping[str, Benchmark]


def read_config(
    path: str | Path,
    names: Sequence[str] = (),
    overrides: Mapping[str, Any] | None = None,
    given: Sequence[str] = (),
) -> Config:
    """Read a configuration file.

    Args:
        path: the JSON or YAML file. Paths of the user's own data in it are relative to its folder.
        names: the benchmarks to keep; one that is not in the file is taken by VLMEvalKit's name or as a TSV in
            `LMUData`. All that the file names when empty.
        overrides: model settings that take the place of the file's, for every model.
        given: `key=value` in the place of what the file says, such as `model.NAME.max_new_tokens=64`.

    Raises:
        UniDPOError: no such file, not JSON or YAML, or all entries that cannot be understood.
    """
    path = Path(path)
    raw = override(read_mapping(path), given)
    models, listed = {}, {}
    faults = FaultCollector()
    with located(raw):
        sections = parse(Sections, raw, "")
        for name, entry in sections.model.items():
            with faults.collecting(f"model.{name}"):
                models[name] = _model(name, entry, overrides or {}, f"model.{name}")
        for name, entry in sections.data.items():
            with faults.collecting(f"data.{name}"):
                listed[name] = parse_benchmark(name, entry, f"data.{name}", path.parent)
        for section, entries in (("model", sections.model), ("data", names or sections.data)):
            if not entries:
                faults.faults.append((section, "nothing stands under it"))
        faults.raise_any()
    return Config(models, {name: listed.get(name) or Benchmark(name, name) for name in names} if names else listed)


def _model(name: str, entry: Any, overrides: Mapping[str, Any], where: str) -> ModelSettings:
    _check_name(name)
    if not isinstance(entry, dict):
        raise UniDPOError(f"a mapping of settings is expected, not {entry!r}")
    if (class_name := entry.get("class", "Qwen2VLChat")) not in MODEL_CLASSES:
        raise UniDPOError(
            f"unknown class {class_name!r}; this command evaluates {' and '.join(MODEL_CLASSES)}, from Qwen2-VL to "
            "Qwen3.5; other models and other wordings of the questions run with VLMEvalKit's own run.py"
        )
    return ModelSettings.parse({**entry, **overrides}, where)


def parse_benchmark(name: str, entry: Any, where: str, folder: Path) -> Benchmark:
    """Check the entry of one benchmark; relative paths in it start in `folder`.

    Raises:
        UniDPOError: every unknown key or value.
    """
    _check_name(name)
    kind = entry.get("type") if isinstance(entry, dict) else None
    known = {"type": KINDS.get(kind.lower(), kind)} if isinstance(kind, str) else {}
    found = parse(Benchmark, {**entry, **known} if isinstance(entry, dict) else entry, where)
    return replace(
        found,
        name=name,
        dataset=found.dataset or name,
        path=folder / found.path if found.path else None,
        image_root=folder / found.image_root if found.image_root else None,
    )


def _check_name(name: object) -> None:
    if not isinstance(name, str) or not name or name[0] == "." or not name.isprintable() or set(name) & set("/\\"):
        raise UniDPOError(f"{name!r} becomes a file name, so it can hold no slash, no line break and no leading dot")


def describe(benchmark: Benchmark) -> dict[str, str]:
    """Give what of the entry an answer depends on, for the fingerprint."""
    return {
        name: str(value) for name in ("dataset", "class_name", "kind", "prompt") if (value := getattr(benchmark, name))
    }


def schema() -> Schema:
    """Make the JSON schema of the configuration file."""
    model, data = schema_of(ModelSettings), schema_of(Benchmark)
    model["properties"] |= {"use_vllm": {"type": "boolean"}}
    sections = {"model": object_schema({}, (), model), "data": object_schema({}, (), data)}
    return object_schema(sections, sections)
