"""The engine's config file, parsed and checked before any model is loaded."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from uni_dpo.data.questions import InputOptions, Question
from uni_dpo.engine.asking import load_template
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import parse_model, weights_of
from uni_dpo.settings.options import fingerprinted, parse, read_mapping
from uni_dpo.settings.registry import find, load_plugins

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
    workers: int = 2
    cpus_per_worker: float = 1
    gpus_per_worker: float = 0


@dataclass(frozen=True)
class Settings:
    """All keys of a config file; `sample`, `reward`, `pairs` and `models` are read by what they configure."""

    pipeline: str
    seed: int = 0
    input: InputOptions = field(default_factory=InputOptions)
    models: Mapping[str, Any] = field(default_factory=dict)
    sample: Mapping[str, Any] = field(default_factory=dict)
    reward: Mapping[str, Any] = field(default_factory=dict)
    pairs: Mapping[str, Any] = field(default_factory=dict)
    dataset: DatasetOptions = field(default_factory=DatasetOptions)
    plugins: list[str] = field(default_factory=list)
    engine: Literal["local", "ray"] = "local"
    ray: RayOptions = field(default_factory=RayOptions)
    batch_size: int = 16
    max_failed_share: float = 0.1
    max_cost: float | None = None


class EngineConfig:
    """A checked config: every name resolved, every setting parsed, no model loaded.

    Args:
        raw: the mapping of a config file.

    Raises:
        UniDPOError: an unknown name or setting, a missing model, a value of the wrong type.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = dict(raw)
        self.settings = parse(Settings, raw, "")
        if self.settings.batch_size < 1 or not 0 <= self.settings.max_failed_share <= 1:
            raise UniDPOError("batch_size starts at 1; max_failed_share lies between 0 and 1")
        load_plugins(tuple(self.settings.plugins))
        self.pipeline_class = find("pipeline", self.settings.pipeline)
        sample = dict(self.settings.sample)
        self.sampler_name = str(sample.pop("sampler", "model"))
        self.sampler_class = find("sampler", self.sampler_name)
        self.sample = parse(self.sampler_class.Options, sample, "sample")
        self.reward = parse(self.pipeline_class.RewardOptions, self.settings.reward, "reward")
        self.pairs = parse(self.pipeline_class.PairOptions, self.settings.pairs, "pairs")
        raters = self.pipeline_class.raters
        self.models = {role: parse_model(spec, role, raters.get(role)) for role, spec in self.settings.models.items()}
        for role in self.roles("sample") + self.roles("reward"):
            if role not in self.models:
                raise UniDPOError(f"models.{role}: the {self.settings.pipeline} pipeline needs a model in this role")

        self.instruction = load_template(self.settings.dataset.prompt, gaps=("question",))

        # Built once without models: their constructors check graders, prompts and what else options name.
        self.sampler_class(self.sample, {}, self.settings.seed)
        self.pipeline_class(self.reward, {}, self.settings.seed)

    @classmethod
    def load(cls, path: str | Path) -> "EngineConfig":
        """Read a YAML file; paths in it are relative to the working directory."""
        return cls(read_mapping(path, "a mapping with the key `pipeline` is expected"))

    def roles(self, stage: str) -> tuple[str, ...]:
        """Names of the models that a stage asks."""
        if stage == "sample":
            return tuple(self.sampler_class.roles)
        return tuple(self.pipeline_class.reward_roles(self.reward)) if stage == "reward" else ()

    def check_servers(self, stage: str) -> None:
        """See that every server that a stage asks is there, before anything is sampled.

        Raises:
            UniDPOError: one does not answer, or refuses the key.
        """
        for role in self.roles(stage):
            backend, options = self.models[role]
            if backend == "openai" and options.base_url is not None:
                find("backend", backend)(options).check()

    def check_models(self, stage: str, *, images: bool) -> None:
        """Raise a UniDPOError where a stage's model is seen not to fit without being loaded.

        Args:
            images: whether the questions have some.
        """
        for role in self.roles(stage):
            options = self.models[role][1]
            if hasattr(options, "check"):
                options.check(images=images)

    def check_questions(self, questions: Sequence[Question]) -> None:
        """Raise a UniDPOError where the pipeline can't score answers to these questions."""
        self.pipeline_class(self.reward, {}, self.settings.seed).check(questions)

    def describe(self, stage: str) -> dict[str, Any]:
        """Everything in this config that decides a stage's output, prompts' texts included."""
        options = {"sample": self.sample, "reward": self.reward, "pair": self.pairs}[stage]
        described: dict[str, Any] = {"seed": self.settings.seed, **fingerprinted(options)}
        if stage == "sample":
            described["sampler"] = self.sampler_name
        else:
            described["pipeline"] = self.settings.pipeline
        for name, value in described.items():
            if name.endswith("prompt") and isinstance(value, str):
                described[name] = load_template(value, gaps=()).text
        for role in self.roles(stage):
            backend, options = self.models[role]
            described[f"models.{role}"] = {"backend": backend, **fingerprinted(options)}
            if weights := weights_of(options):
                described[f"models.{role}"]["weights"] = weights
        return described
