"""The work of one stage on one batch, in this process or in one of Ray's, which holds the same object."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from uni_dpo.data.questions import Question
from uni_dpo.engine.config import EngineConfig
from uni_dpo.engine.records import Answered, Row, Scored, wording
from uni_dpo.engine.samplers import Sampled
from uni_dpo.models.backends.base import Backend, Failure, Request, Usage
from uni_dpo.settings.registry import find
from uni_dpo.storage.identity import digest


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
                recorded: Any = Recorded(models[role], debug / f"{stage}-{role}-{os.getpid()}.jsonl")
                models[role] = recorded
        if stage == "sample":
            self.sampler = config.sampler_class(config.sample, models, config.settings.seed)
        else:
            self.pipeline = config.pipeline_class(config.reward, models, config.settings.seed)

    def __call__(self, batch: Sequence[Row]) -> tuple[list[Row], Usage]:
        """Rows for `batch`, one each and in its order, and what they cost.

        Args:
            batch: rows `{"question": …}`, for the reward stage with `"answers"` beside it, and `"cut"` where some were.
        """
        for backend in self.backends.values():
            backend.usage = Usage()
        questions = [Question.from_row(row["question"]) for row in batch]
        results: Sequence[Sampled | Scored | Failure]
        if self.stage == "sample":
            results = self.sampler.sample(questions)
        else:
            answered = [
                Answered(question, tuple(row["answers"]), tuple(row.get("cut", ())))
                for question, row in zip(questions, batch, strict=True)
            ]
            scored = self.pipeline.reward(answered)
            results = [_with_cuts(item, one) for item, one in zip(answered, scored, strict=True)]
        usage = Usage()
        for backend in self.backends.values():
            usage.add(backend.usage)
        return [_row(question.id, result) for question, result in zip(questions, results, strict=True)], usage


def _with_cuts(item: Answered, scored: Scored | Failure) -> Scored | Failure:
    """The scored answers, each with whether it was cut."""
    cut = item.cut_wordings
    if isinstance(scored, Failure) or not cut:
        return scored
    answers = tuple(replace(answer, cut=wording(answer.text) in cut) for answer in scored.answers)
    return replace(scored, answers=answers)


def _row(question_id: str, result: Sampled | Scored | Failure) -> Row:
    if isinstance(result, Failure):
        return {"id": question_id, "failed": result.reason}
    row: Row = {"id": question_id}
    if isinstance(result, Sampled):
        row["answers"] = list(result.answers)
        row |= {"cut": list(result.cut)} if result.cut else {}
    else:
        row["answers"] = [asdict(answer) for answer in result.answers]
        row["detail"] = result.detail
    row["aside"] = [asdict(item) for item in result.aside]
    return row


class Recorded:
    """A backend that writes what passes through it to a JSONL file."""

    def __init__(self, backend: Any, path: Path) -> None:
        self.backend = backend
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def __getattr__(self, call: str) -> Any:
        """Return what the backend has; of a method such as `generate` or `rate` requests and replies are written."""
        method = getattr(self.backend, call)
        if not callable(method):
            return method

        def recorded(requests: Sequence[Request], *more: Any, **named: Any) -> Any:
            replies = method(requests, *more, **named)
            answers = next((given for given in (*more, *named.values()) if isinstance(given, Sequence)), None)
            with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                for index, (request, reply) in enumerate(zip(requests, replies, strict=True)):
                    line = {"call": call, "request": request, "reply": reply}
                    line |= {} if answers is None else {"answer": answers[index]}
                    file.write(json.dumps(line, ensure_ascii=False, default=asdict) + "\n")
            return replies

        return recorded
