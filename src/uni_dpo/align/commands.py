"""The commands of this program that do the stages, and the configuration files that they read."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from uni_dpo.align.config import training
from uni_dpo.align.layout import Arm, WorkLayout, checkpoints
from uni_dpo.ledger.columns import record_file
from uni_dpo.models.backends.base import parse_model
from uni_dpo.models.checkpoint import ADAPTER_CONFIG, is_adapter
from uni_dpo.settings.losses import compares, is_ours
from uni_dpo.storage import read_json
from uni_dpo.storage.writing import write_text
from uni_dpo.vlmeval.config import ModelSettings

PLACEHOLDERS = {name: f"{{{name}}}" for name in ("model", "base", "previous")}
"""What a configuration of the engine says before it is known which models a round has."""


@dataclass(frozen=True)
class Command:
    """One command of this program.

    Attributes:
        words: without the program's name.
        output: the file that is there, whole, once it is done: it is not run again then.
        leaves: a file that it leaves, perhaps among others.
    """

    words: tuple[str, ...]
    output: Path | None = None
    leaves: Path | None = None


class Commands:
    """What is to be run for the stages that others decide. A method is called when the stages before are done."""

    def __init__(self, layout: WorkLayout) -> None:
        self.layout = layout
        self.config = layout.config
        self.settings = layout.settings

    def warm_up(self) -> list[Command]:
        """Train before the first round."""
        folder = self.layout.work / "warm-up"
        options = _placed(folder, self.warm_up_options(), self.settings.model, self.settings.seed)
        return [_train(folder, options)]

    def warm_up_options(self) -> dict[str, Any]:
        """Return LlamaFactory's settings of the training before the first round."""
        options = {**training({}), "stage": "sft", "save_strategy": "no", **self.settings.warm_up}
        return {name: value for name, value in options.items() if name != "pref_loss"}

    def engine(self, number: int, place: int) -> list[Command]:
        """Do one stage of the engine: 0 sample, 1 reward, 2 pair."""
        start = self.layout.start(number)
        previous = self.layout.start(number - 1) if number > 1 else start
        models = {"model": start, "base": self.layout.base(), "previous": previous}
        file = _write_yaml(self.layout.round(number) / "engine.yaml", self.engine_options(number, models))
        work = str(self.layout.engine(number))
        return [Command(("engine", "run", file, "--work-dir", work, "--run-stage", str(place)))]

    def engine_options(self, number: int, models: Mapping[str, str]) -> dict[str, Any]:
        """Return the engine's configuration in a round; `models` as of `AlignConfig.engine`."""
        dataset = {**(self.settings.engine.get("dataset") or {}), "name": "pairs"}
        given = {"path": str(self.layout.questions("training", number)), "image_root": self.config.image_root}
        options = {**given, "limit": self.config.questions.limit}
        return self.config.engine(models, dataset=dataset, input=options, seed=self.layout.seed(number))

    def train(self, number: int, arm: Arm) -> list[Command]:
        """Train on a round's pairs."""
        return [_train(arm.folder, self.train_options(number, arm))]

    def train_options(self, number: int, arm: Arm) -> dict[str, Any]:
        """Return LlamaFactory's settings of the training on a round's pairs."""
        found = {"dataset": self.layout.dataset_name, "dataset_dir": str(self.layout.dataset(number))}
        start, base = self.layout.start(number), self.layout.base()
        if self.settings.reference == "base" and start != base and compares(arm.options["pref_loss"]):
            found["ref_model"], adapter = _whole_and_adapter(base)
            found |= {"ref_model_adapters": adapter} if adapter else {}
        return _placed(arm.folder, {**arm.options, **found}, start, self.layout.seed(number))

    def ask(self, part: str, models: Mapping[str, str], folder: Path) -> list[Command]:
        """Let models answer the questions of a part, or have their answers scored; by name in `folder`."""
        if self.settings.evaluate.by == "score":
            return [command for name, model in models.items() for command in self._score(part, model, folder / name)]
        return [self._predict(part, model, folder / f"{name}.jsonl") for name, model in models.items()]

    def _predict(self, part: str, model: str, output: Path) -> Command:
        options, root = self.settings.evaluate, self.config.image_root
        prompt = (self.settings.engine.get("sample") or {}).get("prompt")
        backend, about = self._sampler(model)
        words = [
            *("predict", str(self.layout.questions(part)), str(output), "--model", model, "--temperature", "0"),
            *("--grader", options.grader, "--max-tokens", str(options.max_tokens)),
            *("--batch-size", str(options.batch_size), "--seed", str(self.settings.seed)),
            *(("--backend", "vllm") if backend == "vllm" else ()),
            *(f"--model-options={name}={json.dumps(value)}" for name, value in about.items()),
            *(("--image-root", root) if root else ()),
            *(("--system", options.system) if options.system else ()),
            *(("--prompt", prompt) if prompt not in (None, "answer") else ()),
        ]
        return Command(tuple(words), output)

    def _sampler(self, model: str) -> tuple[str, dict[str, Any]]:
        """The backend that samples, and what the configuration says of it where a model of this machine answers."""
        models = {"model": model, "base": self.layout.base(), "previous": model}
        sampler = self.config.engine(models)["models"]["sampler"]
        backend, _ = parse_model(sampler, "models.sampler")
        about = sampler if backend in ("transformers", "vllm") else {}
        return backend, {name: value for name, value in about.items() if name not in ("backend", "model", "batch_size")}

    def _score(self, part: str, model: str, folder: Path) -> list[Command]:
        """The pipeline that scores the samples, on one greedy answer per question."""
        models = {"model": model, "base": self.layout.base(), "previous": model}
        file = _write_yaml(folder.with_suffix(".yaml"), self.scoring_options(part, models))
        command = ("engine", "run", file, "--work-dir", str(folder), "--run-stage")
        return [Command((*command, place)) for place in ("0", "1")]

    def scoring_options(self, part: str, models: Mapping[str, str]) -> dict[str, Any]:
        """Return the engine's configuration by which a model's answers to the questions of a part are scored."""
        given = {"path": str(self.layout.questions(part)), "image_root": self.config.image_root, "limit": None}
        prompt = (self.settings.engine.get("sample") or {}).get("prompt")
        sample = {"n": 1, "temperature": 0.0, "max_tokens": self.settings.evaluate.max_tokens}
        sample |= {"prompt": prompt} if prompt else {}
        # Empty answers are the model's own fault and count as such; questions without a reply are asked again.
        changed = {"input": given, "sample": sample, "seed": self.settings.seed, "max_failed_share": 1.0}
        return self.config.engine(models, **changed)

    def benchmarks(self) -> list[Command]:
        """Evaluate the first and the last model, and the baselines' ones."""
        folder = self.layout.work / "benchmarks"
        models = {"before": self.layout.base()}
        models |= {"after": final} if (final := self.layout.final()) != models["before"] else {}
        baselines = {arm.name.replace("/", "-"): arm.choice() for arm in self.layout.baselines()}
        models |= {name: choice.model for name, choice in baselines.items() if choice is not None}
        limit = self.settings.evaluate.max_tokens
        found = {name: self._evaluated(model) | {"max_new_tokens": limit} for name, model in models.items()}
        data = {name: _absolute(options) for name, options in self.settings.benchmarks.items()}
        text = json.dumps({"model": found, "data": data}, indent=1, ensure_ascii=False)
        write_text(folder / "config.json", text + "\n")
        work = ("--work-dir", str(folder / "work"), "--seed", str(self.settings.seed))
        return [Command(("eval", str(folder / "config.json"), *work), leaves=folder / "work" / "results.json")]

    def _evaluated(self, model: str) -> dict[str, Any]:
        """A model as `eval` takes it, with what it knows of the sampler's settings."""
        backend, about = self._sampler(model)
        known = {field.name for field in fields(ModelSettings)} if backend == "transformers" else set()
        return {"model_path": model} | {name: value for name, value in about.items() if name in known}

    def report(self) -> list[Command]:
        """Write one page of all trainings, with their curves, verdicts and pairs."""
        arms = [arm for number in range(1, self.settings.rounds + 1) for arm in self.layout.arms(number)]
        trained = [str(arm.model) for arm in arms if record_file(arm.model).is_file()]
        page = str(self.layout.work / "report.html")
        return [Command(("report", *trained, "--output", page))] if trained else []


def _placed(folder: Path, options: Mapping[str, Any], start: str, seed: int) -> dict[str, Any]:
    """A training's settings with the model that it starts from and the folder that it writes to."""
    whole, adapter = _whole_and_adapter(start)
    placed = {"seed": seed, **options, "model_name_or_path": whole, "output_dir": str(folder / "model")}
    return placed | ({"adapter_name_or_path": adapter} if adapter else {})


def _train(folder: Path, options: Mapping[str, Any]) -> Command:
    """The command that trains, or goes on with a training that was stopped where that ends with the same model."""
    # A fully tuned model is resumed by other names than it was saved by, unless the loss is ours: docs/train.md.
    resumes = is_ours(options.get("pref_loss", "sigmoid")) or options.get("finetuning_type", "lora") == "lora"
    last = _last_whole(folder / "model") if resumes and not options.get("save_only_model") else None
    if last is None:
        shutil.rmtree(folder / "model", ignore_errors=True)
    resumed = {} if last is None else {"resume_from_checkpoint": str(last)}
    last_words = folder / "model" / "trainer_state.json"
    return Command(("train", _write_yaml(folder / "train.yaml", {**options, **resumed})), leaves=last_words)


def _last_whole(model: Path) -> Path | None:
    """The last checkpoint that a training can go on from; what a kill cut off after it is removed.

    So is the checkpoint of a last step within an epoch: transformers would take a step more from it.
    """
    for _, folder in reversed(checkpoints(model)):
        try:
            state = read_json(folder / "trainer_state.json")
            ended = 0 < state.get("max_steps", 0) <= state.get("global_step", 0)
            within_epoch = ended and state.get("epoch", 0) % 1 != 0
            whole = bool(state) and any(folder.glob("*processor_config.json")) and not within_epoch
        except ValueError:
            whole = False
        if whole:
            return folder
        shutil.rmtree(folder)
    return None


def _absolute(options: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the benchmarks with paths that hold wherever its file lies."""
    places = ("path", "image_root")
    return {key: str(Path(value).absolute()) if key in places else value for key, value in options.items()}


def _write_yaml(path: Path, settings: Mapping[str, Any]) -> str:
    write_text(path, yaml.safe_dump({**settings}, sort_keys=False, allow_unicode=True))
    return str(path)


def _whole_and_adapter(model: str | Path) -> tuple[str, str | None]:
    """Return what LlamaFactory calls `model_name_or_path` and `adapter_name_or_path`."""
    folder = Path(model)
    if not is_adapter(folder):
        return str(folder) if not folder.is_dir() else str(folder.absolute()), None
    named = str(read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path"))
    return named, str(folder.absolute())
