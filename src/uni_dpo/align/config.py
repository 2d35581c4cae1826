"""The configuration of `uni-dpo align`, checked before anything is started."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from uni_dpo.align.launch import read_launchers
from uni_dpo.engine.config import EngineConfig
from uni_dpo.errors import UniDPOError
from uni_dpo.graders.grading import load_grader
from uni_dpo.settings.options import Count, NotNegative, Seed, parse, runtime
from uni_dpo.settings.reading import beneath, located, override, read_mapping
from uni_dpo.settings.training import check_early

OURS = ("model_name_or_path", "adapter_name_or_path", "dataset", "dataset_dir", "output_dir", "resume_from_checkpoint")
"""LlamaFactory's settings that follow from the stages before."""
WRITTEN = ("questions", "warm-up", "base", "benchmarks", "aside", "logs")
"""Folders of a work dir that the stages write, beside those of the rounds."""


@dataclass(frozen=True)
class TrainingQuestions:
    """The questions whose answers the model learns from.

    Attributes:
        path: a file that the engine reads (docs/engine.md).
        image_root: where image paths start, and which none may leave; without it the folder of the file where that is
            split, else as the engine has it.
        limit: use only this many (the first by id).
        per_round: ask the same questions in every round, or give each round its own part of them.
    """

    path: str
    image_root: str | None = None
    limit: Count | None = None
    per_round: Literal["repeated", "new"] = "repeated"


@dataclass(frozen=True)
class EvaluationOptions:
    """How models are compared, on validation and test questions.

    Attributes:
        by: `answers` grades one greedy answer to each question with `grader`; `score` lets the pipeline that scores
            the samples score it.
        grader: exact, numeric, multiple_choice, math, vqa, or `package.module:function`.
        system: the system prompt of rows without one.
        max_tokens: of an answer.
        batch_size: questions at once.
    """

    by: Literal["answers", "score"] = "answers"
    grader: str = "exact"
    system: str | None = None
    max_tokens: Count = 256
    batch_size: Count = runtime(64)


@dataclass(frozen=True)
class CalibrationOptions:
    """The scale that the pairs' scores are mapped onto; as `uni-dpo data calibrate` has it."""

    method: Literal["linear", "rank", "zscore"] = "linear"
    low: float = 0.0
    high: float = 5.0


@dataclass(frozen=True)
class AlignSettings:
    """All keys of a configuration.

    Attributes:
        model: folder or hub name of the checkpoint to begin with, or the folder of a LoRA adapter.
        work_dir: everything is left here.
        questions: a path, or a mapping (`TrainingQuestions`).
        validation: file of questions on which checkpoints are chosen, or the share of `questions` that is set aside.
        test: file of questions on which before and after are compared, or a share; nothing is chosen on it.
        engine: a configuration of the data engine without its `input`, `dataset.name`, `seed` and the sampler's model.
        train: any of LlamaFactory's settings.
        warm_up: LlamaFactory's settings of a training before the first round, as SFT; none where empty.
        calibrate: whether and how scores are brought onto one scale.
        evaluate: how models are compared.
        benchmarks: the `data` part of an `uni-dpo eval` configuration; the first and the last model are evaluated.
        baselines: name → settings that replace those of `train`, to train on the same pairs and compare with.
        rounds: at most so many.
        reference: of a later round: the model that the round starts from, or the one that the first round started from.
        go_on: a further round follows where validation is better, surely better (the interval lies above 0), or always.
        seed: of everything drawn; round r uses seed + r − 1.
        launcher: template of the command that starts a stage, with `{command}` in it, or stage kind → template.
        attempts: how often a stage that fails is started in one run.
        pause: seconds between two attempts.
    """

    model: str
    work_dir: str
    questions: Any
    engine: Mapping[str, Any]
    train: Mapping[str, Any]
    validation: Any = 0.1
    test: Any = 0.1
    warm_up: Mapping[str, Any] = field(default_factory=dict)
    calibrate: CalibrationOptions | None = None
    evaluate: EvaluationOptions = field(default_factory=EvaluationOptions)
    benchmarks: Mapping[str, Any] = field(default_factory=dict)
    baselines: Mapping[str, Any] = field(default_factory=dict)
    rounds: Count = 1
    reference: Literal["base", "previous"] = "previous"
    go_on: Literal["better", "surely_better", "always"] = "better"
    seed: Seed = 0
    launcher: Any = runtime("{command}")  # a field, as the others
    attempts: Count = runtime(1)
    pause: NotNegative = runtime(30.0)


class AlignConfig:
    """A file's mapping, checked: every setting of every stage parsed, nothing started.

    Raises:
        UniDPOError: an unknown name or setting, a value of the wrong type, a file that is not there.
    """

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.settings = settings = parse(AlignSettings, raw, "")
        self.work = Path(settings.work_dir).absolute()
        given = settings.questions
        self.questions = parse(TrainingQuestions, {"path": given} if isinstance(given, str) else given, "questions")
        self.validation = _held_out(settings.validation, "validation")
        self.test = _held_out(settings.test, "test")
        self._check_numbers()
        for path in (self.questions.path, *(part for part in (self.validation, self.test) if isinstance(part, str))):
            if not Path(path).exists():
                raise UniDPOError(f"questions, validation, test: there is no file {path}")
        self._check_places()
        self._check_engine()
        for name, options in {"train": settings.train, "warm_up": settings.warm_up, **self.baselines}.items():
            _check_training(name, options)
        self.launchers = read_launchers(settings.launcher)

    @classmethod
    def load(cls, path: str | Path, given: Sequence[str] = ()) -> "AlignConfig":
        """Read a YAML file and the `key=value` settings given beside it; paths are relative to the working folder."""
        raw = override(read_mapping(path), given)
        with located(raw):
            return cls(raw)

    @property
    def splits(self) -> bool:
        """Whether the questions are divided before anything else."""
        return self.parts > 1 or any(isinstance(part, float) for part in (self.validation, self.test))

    @property
    def parts(self) -> int:
        """Into how many parts the questions for training are divided."""
        return self.settings.rounds if self.questions.per_round == "new" else 1

    def shares(self) -> dict[str, float]:
        """Name → share of the questions, for each file that they are divided into."""
        held_out = {"validation": self.validation, "test": self.test}
        shares = {name: share for name, share in held_out.items() if isinstance(share, float)}
        names = [f"training-{n + 1}" for n in range(self.parts)] if self.parts > 1 else ["training"]
        return shares | dict.fromkeys(names, (1 - sum(shares.values())) / self.parts)

    @property
    def image_root(self) -> str | None:
        """Where image paths start, as it holds on every machine."""
        if self.questions.image_root is not None:
            return str(Path(self.questions.image_root).absolute())
        return str(Path(self.questions.path).absolute().parent) if self.splits else None

    @property
    def baselines(self) -> dict[str, dict[str, Any]]:
        """Name → all training settings of a baseline."""
        return {name: {**self.settings.train, **changed} for name, changed in self.settings.baselines.items()}

    def engine(self, models: Mapping[str, str], **changed: Any) -> dict[str, Any]:
        """Return the engine's configuration with `models` in the place of `{model}`, `{base}` and `{previous}`.

        The sections `changed` take the place of those that the file gives.
        """
        roles = dict(self.settings.engine.get("models") or {})
        roles["sampler"] = {"model": "{model}", **(roles.get("sampler") or {})}
        filled = {role: _filled(spec, models) for role, spec in roles.items()}
        return {**self.settings.engine, "models": filled, **changed}

    def _check_numbers(self) -> None:
        settings = self.settings
        held_out = sum(part for part in (self.validation, self.test) if isinstance(part, float))
        if held_out >= 1:
            raise UniDPOError(f"validation, test: shares of {held_out:g} leave no questions to learn from")
        for key, named in (("baselines", settings.baselines), ("benchmarks", settings.benchmarks)):
            for name, options in named.items():
                if not isinstance(options, Mapping):
                    raise UniDPOError(f"{key}.{name}: a mapping of settings is expected, not {options!r}")
        for name in settings.baselines:
            if not name.replace("-", "").replace("_", "").isalnum():
                raise UniDPOError(f"baselines.{name}: a name has letters, digits, - and _, since a folder is named so")

    def _check_places(self) -> None:
        """See that nothing which is read lies where the stages write: it would be put aside with what they made."""
        given = {"model": self.settings.model, "questions.path": self.questions.path}
        for name, path in {**given, "validation": self.validation, "test": self.test}.items():
            place = Path(str(path)).absolute()
            if place.exists() and place.is_relative_to(self.work):
                folder = (*place.relative_to(self.work).parts, "")[0]
                if folder in WRITTEN or folder.startswith("round-"):
                    written = self.work / folder
                    raise UniDPOError(
                        f"{name}: {path} lies in {written}, which the stages write; take another work_dir"
                    )

    def _check_engine(self) -> None:
        engine, evaluate = self.settings.engine, self.settings.evaluate
        for key, instead in (("input", "questions"), ("seed", "seed")):
            if key in engine:
                raise UniDPOError(f"engine.{key}: it follows from `{instead}`; leave it out")
        if "name" in (engine.get("dataset") or {}):
            raise UniDPOError("engine.dataset.name: the stages know it; leave it out")
        with beneath("engine"):
            models = dict.fromkeys(("model", "base", "previous"), self.settings.model)
            self.checked_engine = EngineConfig(self.engine(models))
        if evaluate.by == "answers":
            load_grader(evaluate.grader)
        compares = (engine.get("reward") or {}).get("method") == "compare"
        if evaluate.by == "score" and (engine["pipeline"] in ("dpo_reward", "process_reward") or compares):
            raise UniDPOError(
                f"evaluate.by: score: the pipeline {engine['pipeline']} does not score one answer by itself; take "
                "answers, or another pipeline"
            )


def training(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return LlamaFactory's settings of a training on pairs, with what a configuration may leave out."""
    defaults = {
        "stage": "dpo",
        "do_train": True,
        "pref_loss": "uni_dpo",
        "template": "qwen2_vl",
        "save_strategy": "epoch",
        "logging_steps": 5,
        "report_to": "none",
    }
    return {**defaults, **{name: _number(value) for name, value in options.items()}}


def _number(value: Any) -> Any:
    """YAML reads 1e-3 as text, LlamaFactory as a number."""
    try:
        return float(value) if isinstance(value, str) and "e-" in value.lower() else value
    except ValueError:
        return value


def _held_out(value: object, name: str) -> str | float:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1:
        return float(value)
    raise UniDPOError(f"{name}: a file of questions, or a share between 0 and 1; not {value!r}")


def _check_training(name: str, options: Mapping[str, Any]) -> None:
    ours = OURS if name != "warm_up" else tuple(key for key in OURS if not key.startswith("dataset"))
    for key in ours:
        if key in options:
            raise UniDPOError(f"{name}.{key}: it follows from the stages before; leave it out")
    if name == "warm_up" and options and "dataset" not in options:
        raise UniDPOError("warm_up.dataset: name the dataset that it learns from (and dataset_dir)")
    if options or name != "warm_up":
        with beneath(name):
            check_early(dict(options))


def _filled(value: Any, models: Mapping[str, str]) -> Any:
    """A model's settings with `{model}`, `{base}` and `{previous}` put in."""
    if not isinstance(value, Mapping):
        return value
    names = {f"{{{name}}}": path for name, path in models.items()}
    return {key: names.get(item, item) if isinstance(item, str) else item for key, item in value.items()}
