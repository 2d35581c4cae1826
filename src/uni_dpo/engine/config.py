"""The engine's config file, parsed and checked before any model is loaded."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from uni_dpo.data.questions import InputOptions, Question
from uni_dpo.engine.asking import load_template
from uni_dpo.models.backends.base import parse_model, weights_of
from uni_dpo.models.backends.settings import BUILT_IN, check_videos, without_secrets
from uni_dpo.settings.options import Count, NotNegative, Seed, Share, fingerprinted, parse
from uni_dpo.settings.reading import FaultCollector, located, override, read_mapping
from uni_dpo.settings.registry import find, load_plugins, names, own_code
from uni_dpo.settings.schema import Schema, object_schema, schema_of

STAGES = ("sample", "reward", "pair")


@dataclass(frozen=True)
class DatasetOptions:
    """The final data set.

    Attributes:
        name: in `dataset_info.json`.
        prompt: what training asks; gap {question}. Name the prompt of the sampling to train on what was asked.
    """

    name: str = "uni_dpo_engine"
    prompt: str = "answer"


@dataclass(frozen=True)
class RayOptions:
    """Settings of `engine: ray`.

    Attributes:
        address: of a running cluster; None starts one on this machine.
        workers: actors per stage, each holding the stage's models.
        cpus_per_worker, gpus_per_worker: what each actor reserves.
    """

    address: str | None = None
    workers: Count = 2
    cpus_per_worker: NotNegative = 1
    gpus_per_worker: NotNegative = 0


@dataclass(frozen=True)
class Settings:
    """All keys of a config file; `sample`, `reward`, `pairs` and `models` are read by what they configure."""

    pipeline: str
    seed: Seed = 0
    input: InputOptions = field(default_factory=InputOptions)
    models: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    reward: Mapping[str, Any] = field(default_factory=dict)
    pairs: Mapping[str, Any] = field(default_factory=dict)
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    plugins: list[str] = field(default_factory=list)
    engine: Literal["local", "ray"] = "local"
    ray: RayOptions = field(default_factory=RayOptions)
    batch_size: Count = 16
    max_failed_share: Share = 0.1
    max_cost: NotNegative | None = None


class EngineConfig:
    """A checked config, of the mapping in a file: every name resolved, every setting parsed, no model loaded.

    Raises:
        SettingsError: every unknown name or setting, missing model, and value of the wrong type or out of range.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = dict(raw)
        faults = FaultCollector()
        with faults.collecting():
            self.settings = parse(Settings, raw, "")
            load_plugins(tuple(self.settings.plugins))
        self._read_sections(raw, faults)
        faults.raise_any()
        for role in self.roles("sample") + self.roles("reward"):
            if role not in self.models:
                needs = f"the {self.settings.pipeline} pipeline needs a model in this role"
                faults.faults.append((f"models.{role}", needs))
        low, high = getattr(self.reward, "low", 0.0), getattr(self.reward, "high", 1.0)
        if low >= high:
            said = (
                f"{low:g} is not below reward.high, which is {high:g}; it has to be, or worse answers count as better"
            )
            faults.faults.append(("reward.low", said))
        # Built once without models: their constructors check graders, prompts and what else options name.
        with faults.collecting("sample"):
            self.sampler_class(self.sample, {}, self.settings.seed)
        with faults.collecting("reward"):
            self.pipeline_class(self.reward, {}, self.settings.seed)
        with faults.collecting("dataset.prompt"):
            self.instruction = load_template(self.settings.dataset.prompt, gaps=("question",))
        faults.raise_any()

    def _read_sections(self, raw: Mapping[str, Any], faults: FaultCollector) -> None:
        """Read what sampler, pipeline and backends define, each by its own options."""
        given = {name: value if isinstance(value, Mapping) else {} for name, value in raw.items()}
        sample = dict(given.get("sample", {}))
        self.sampler_name = str(sample.pop("sampler", "model"))
        self.models = {}
        with faults.collecting("sample.sampler"):
            self.sampler_class = find("sampler", self.sampler_name)
            self.sample = parse(self.sampler_class.Options, sample, "sample")
        if not isinstance(raw.get("pipeline"), str):
            return
        with faults.collecting("pipeline"):
            self.pipeline_class = find("pipeline", raw["pipeline"])
            with faults.collecting():
                self.reward = parse(self.pipeline_class.RewardOptions, given.get("reward"), "reward")
            with faults.collecting():
                self.pairs = parse(self.pipeline_class.PairOptions, given.get("pairs"), "pairs")
            for role, spec in given.get("models", {}).items():
                with faults.collecting(f"models.{role}"):
                    self.models[role] = parse_model(spec, f"models.{role}", self.pipeline_class.raters.get(role))

    @classmethod
    def load(cls, path: str | Path, overrides: Sequence[str] = ()) -> "EngineConfig":
        """See `settings.options.load`."""
        given = override(read_mapping(path), overrides)
        with located(given):
            return cls(given)

    def shown(self) -> dict[str, Any]:
        """Return the mapping of the config file, without what may be a key in the addresses of its models."""
        models = {role: dict(spec) for role, spec in self.raw.get("models", {}).items()}
        for spec in filter(lambda spec: isinstance(spec.get("base_url"), str), models.values()):
            spec["base_url"] = without_secrets(spec["base_url"])
        return {**self.raw, "models": models}

    def roles(self, stage: str) -> tuple[str, ...]:
        """Return names of the models that a stage asks."""
        if stage == "sample":
            return tuple(self.sampler_class.roles)
        return tuple(self.pipeline_class.reward_roles(self.reward)) if stage == "reward" else ()

    def check_servers(self, stage: str) -> None:
        """Raise a UniDPOError where a server that a stage asks does not answer, or refuses the key."""
        for role in self.roles(stage):
            backend, options = self.models[role]
            if backend == "openai" and options.base_url is not None:
                find("backend", backend)(options).check()

    def check_models(self, stage: str, questions: Sequence[Question]) -> None:
        """Raise a UniDPOError where a stage's model is seen not to fit these questions without being loaded."""
        images = any(question.images or question.videos for question in questions)
        for role in self.roles(stage):
            backend, options = self.models[role]
            if hasattr(options, "check"):
                options.check(images=images)
            if role not in self.pipeline_class.read_only:
                check_videos(backend, options, questions)

    def check_questions(self, questions: Sequence[Question]) -> None:
        """Raise a UniDPOError where the pipeline can't score answers to these questions."""
        self.pipeline_class(self.reward, {}, self.settings.seed).check(questions)

    def describe(self, stage: str) -> dict[str, Any]:
        """Return everything that decides a stage's output, the texts of prompts and of own code included."""
        options = {"sample": self.sample, "reward": self.reward, "pair": self.pairs}[stage]
        described: dict[str, Any] = {"seed": self.settings.seed, **fingerprinted(options)}
        described |= {"sampler": self.sampler_name} if stage == "sample" else {"pipeline": self.settings.pipeline}
        for name, value in described.items():
            if name.endswith("prompt") and isinstance(value, str):
                described[name] = load_template(value, gaps=()).text
        for role in self.roles(stage):
            backend, options = self.models[role]
            weights = weights_of(options)
            about = {"backend": backend, **fingerprinted(options)} | ({"weights": weights} if weights else {})
            described[f"models.{role}"] = about
        code = {name: known for name, thing in self._things(stage) if (known := own_code(thing)) is not None}
        return described | ({"code": code} if code else {})

    def _things(self, stage: str) -> Iterator[tuple[str, Any]]:
        """What a stage's work is done by, each under the name that the config has for it."""
        if stage == "sample":
            yield self.sampler_name, self.sampler_class
        else:
            yield self.settings.pipeline, self.pipeline_class
        for role in self.roles(stage):
            yield self.models[role][0], find("backend", self.models[role][0])
        for kind in ("grader", "checker"):
            if stage == "reward" and isinstance(name := getattr(self.reward, kind, None), str):
                yield name, find(kind, name)


def schema() -> Schema:
    """Make the JSON schema of the config file: what a pipeline, a sampler and a backend take depends on their names."""
    whole = schema_of(Settings)
    sections = whole["properties"]
    sections["pipeline"]["examples"] = names("pipeline")
    by_backend = [
        _with(schema_of(options), "backend", name, required=name != "transformers")
        for name, options in BUILT_IN.items()
    ]
    own = {"properties": {"backend": {"not": {"enum": list(BUILT_IN)}}}, "required": ["backend"]}
    sections["models"] = object_schema({}, (), {"anyOf": [*by_backend, own]})
    samplers = [
        _with(schema_of(find("sampler", name).Options), "sampler", name, required=name != "model")
        for name in names("sampler")
    ]
    own = {"properties": {"sampler": {"not": {"enum": names("sampler")}}}, "required": ["sampler"]}
    sections["sample"] = {"anyOf": [*samplers, own]}
    whole["allOf"] = []
    for name in names("pipeline"):
        pipeline = find("pipeline", name)
        options = {"reward": schema_of(pipeline.RewardOptions), "pairs": schema_of(pipeline.PairOptions)}
        chosen = {"properties": {"pipeline": {"const": name}}}
        whole["allOf"].append({"if": chosen, "then": {"properties": options}})
    return whole


def _with(schema: Schema, key: str, value: str, *, required: bool) -> Schema:
    """The schema of a mapping in which `key` names what takes it; the default need not be named."""
    schema["properties"] = {key: {"const": value}, **schema["properties"]}
    schema["required"] = [*schema.get("required", []), *([key] if required else [])]
    return schema
