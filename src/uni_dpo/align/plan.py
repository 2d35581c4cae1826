"""What a configuration will do: its stages, how they stand, and the most that each can cost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.align.commands import Commands
from uni_dpo.align.config import AlignConfig
from uni_dpo.align.layout import WorkLayout
from uni_dpo.align.run import result, standings
from uni_dpo.align.stages import AlignStage
from uni_dpo.data.tables.reading import iter_rows
from uni_dpo.models.backends.base import parse_model
from uni_dpo.plan.estimate import GIB, estimate
from uni_dpo.plan.gpus import Gpu, gpu_named
from uni_dpo.settings.registry import find


@dataclass(frozen=True)
class PlanLine:
    """One row of the plan's table."""

    stage: str
    standing: str
    what: str


def plan_lines(config: AlignConfig, gpu: str | None = None, gpus: int = 1) -> Iterator[PlanLine]:
    """Yield the stages in their order, with counts; those of stages that are not done are upper bounds.

    With a `gpu`, as `uni-dpo plan` names it, memory and hours of the trainings are estimated for so many of them.
    """
    counts = _Counts(config, None if gpu is None else gpu_named(gpu), gpus)
    for stage, standing, seconds in standings(config):
        if standing.word == "done":
            what = f"{result(stage, config.work)} ({seconds:.0f} s)"
        elif standing.word == "stale":
            what = f"{standing.why}: --from {stage.name} does it again"
        else:
            what = counts.of(stage)
        yield PlanLine(stage.name, standing.word, what)


class _Counts:
    def __init__(self, config: AlignConfig, gpu: Gpu | None, gpus: int) -> None:
        self.config = config
        self.gpu, self.gpus = gpu, gpus
        self.layout = WorkLayout(config)
        engine = config.settings.engine
        self.sample: Mapping[str, Any] = engine.get("sample") or {}
        seeds = self.sample.get("seeds") or ()
        self.answers = (len(seeds) or 1) * int(self.sample.get("n") or (1 if seeds else 8))
        self.by_score = config.settings.evaluate.by == "score"
        self.rows = _rows(config.questions.path)

    def of(self, stage: AlignStage) -> str:
        """Return the most that a stage can come to."""
        number = int(stage.name.partition("/")[0]) if stage.name[0].isdecimal() else 1
        asked = self.questions("training", number)
        answers = asked * self.answers
        if stage.kind == "sample":
            tokens = answers * int(self.sample.get("max_tokens", 256))
            return f"{asked:,} questions × {self.answers} answers, at most {tokens:,} tokens"
        if stage.kind == "score":
            return self._scoring(answers)
        if stage.kind == "pair":
            pairs = (self.config.settings.engine.get("pairs") or {}).get("max_pairs_per_question", 2)
            return f"at most {asked * int(pairs):,} pairs"
        if stage.kind == "train" and self.gpu is not None:
            return f"{stage.says}; {self._training(stage, number, self.gpu)}"
        if stage.kind in ("validate", "test"):
            questions = self.questions("validation" if stage.kind == "validate" else "test")
            scoring = f"; {self._scoring(questions)}" if self.by_score else ""
            each = " for each checkpoint" if scoring and stage.name != stage.kind and stage.kind == "validate" else ""
            return f"{stage.says}: {questions:,}{scoring}{each}"
        return stage.says

    def _training(self, stage: AlignStage, number: int, gpu: Gpu) -> str:
        """What a training takes, once its pairs are there."""
        if not (self.layout.dataset(number) / f"{self.layout.dataset_name}.json").is_file():
            return "memory and hours are estimated once the pairs are there"
        arm = next(arm for arm in self.layout.arms(number) if stage.name == f"{arm.name}/train")
        found = estimate(Commands(self.layout).train_options(number, arm), gpu, self.gpus)
        fits = "fits" if found.fits else f"does not fit into {found.room / GIB:.0f} GiB"
        return f"{found.steps:,} steps, about {found.hours[1]:.1f} h, {found.total / GIB:.1f} GiB: {fits}"

    def questions(self, part: str, number: int = 1) -> int:
        """Tell how many questions a part has; for a share, about so many."""
        file = self.layout.questions(part, number)
        if file.is_file():
            count = _rows(file)
        else:
            name = f"{part}-{number}" if part == "training" and self.config.parts > 1 else part
            count = round(self.config.shares()[name] * self.rows)
        return min(count, self.config.questions.limit or count) if part == "training" else count

    def _scoring(self, answers: int) -> str:
        engine = self.config.settings.engine
        reward = engine.get("reward") or {}
        raters = find("pipeline", engine["pipeline"]).raters
        served = {
            role: spec
            for role, spec in (engine.get("models") or {}).items()
            if role != "sampler" and parse_model(spec, f"models.{role}", raters.get(role))[0] == "openai"
        }
        if not served:
            return f"at most {answers:,} answers by {engine['pipeline']}"
        if engine["pipeline"] != "judge":
            return f"at most {answers:,} answers by {engine['pipeline']}, asked of {', '.join(served)}"
        several = reward.get("method") == "compare"
        requests = answers * (self.answers - 1) if several else answers
        tokens = requests * int(reward.get("max_tokens", 512))
        price = float(served["judge"].get("price_completion", 0.0)) * tokens / 1e6
        cost = f", replies at most {price:.2f} by price_completion" if price else ""
        again = "; more where a reply cannot be read and is asked for again"
        return f"at most {requests:,} requests, {tokens:,} tokens of replies{cost}{again}"


def _rows(path: str | Path) -> int:
    return sum(1 for _ in iter_rows(path))
