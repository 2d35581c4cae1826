"""The work of one stage on one batch: the same object runs in this process and in every Ray actor."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from uni_dpo.engine.backends.base import Backend, Failure, Usage
from uni_dpo.engine.config import EngineConfig, digest
from uni_dpo.engine.recording import Recorded
from uni_dpo.engine.records import Answered, Question, Row, Scored
from uni_dpo.engine.registry import find
from uni_dpo.engine.samplers import Sampled


class Worker:
    """Holds the models of a stage and turns batches of input rows into output rows.

    Args:
        raw: the config's mapping, from which another process can build the same worker.
        stage: `sample` or `reward`.
        debug: folder to which every request and reply is written; None for none.
    """

    def __init__(self, raw: Mapping[str, Any], stage: str, debug: Path | None = None) -> None:
        config = EngineConfig(raw)
        self.stage = stage
        self.backends: dict[str, Backend] = {}
        models: dict[str, Backend] = {}
        for role in config.roles(stage):
            backend, options = config.models[role]
            key = digest([backend, asdict(options)])
            if key not in self.backends:  # roles with one and the same model share it
                self.backends[key] = find("backend", backend)(options)
            models[role] = self.backends[key]
            if debug is not None:
                models[role] = Recorded(models[role], debug / f"{stage}-{role}-{os.getpid()}.jsonl")
        if stage == "sample":
            self.sampler = config.sampler_class(config.sample, models, config.settings.seed)
        else:
            self.pipeline = config.pipeline_class(config.reward, models, config.settings.seed)

    def __call__(self, batch: Sequence[Row]) -> tuple[list[Row], Usage]:
        """Rows for `batch`, one each and in its order, and what they cost.

        Args:
            batch: rows `{"question": …}`, for the reward stage with `"answers"` beside it.
        """
        for backend in self.backends.values():
            backend.usage = Usage()
        questions = [Question.from_row(row["question"]) for row in batch]
        results: Sequence[Sampled | Scored | Failure]
        if self.stage == "sample":
            results = self.sampler.sample(questions)
        else:
            results = self.pipeline.reward(
                [Answered(question, tuple(row["answers"])) for question, row in zip(questions, batch, strict=True)]
            )
        usage = Usage()
        for backend in self.backends.values():
            usage.add(backend.usage)
        return [_row(question.id, result) for question, result in zip(questions, results, strict=True)], usage


def _row(question_id: str, result: Sampled | Scored | Failure) -> Row:
    if isinstance(result, Failure):
        return {"id": question_id, "failed": result.reason}
    row: Row = {"id": question_id}
    if isinstance(result, Sampled):
        row["answers"] = list(result.answers)
    else:
        row["answers"] = [asdict(answer) for answer in result.answers]
        row["detail"] = result.detail
    row["aside"] = [asdict(item) for item in result.aside]
    return row
