"""The work of one stage on one batch, in this process or in Ray actors, which hold the same object."""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from uni_dpo.data.questions import Question
from uni_dpo.engine.config import EngineConfig, RayOptions
from uni_dpo.engine.records import Answered, Row, Scored, wording
from uni_dpo.engine.samplers import Sampled
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import AnswerLogprob, Backend, Failure, Request, Sample, Sampling, Usage
from uni_dpo.settings.registry import find
from uni_dpo.storage.identity import digest

RESTARTS = 3
"""How often Ray does a batch again whose worker died."""


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

    @property
    def usage(self) -> Usage:
        """What the backend has done."""
        usage: Usage = self.backend.usage
        return usage

    @usage.setter
    def usage(self, usage: Usage) -> None:
        self.backend.usage = usage

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        """See `Backend.generate`."""
        return self._written("generate", requests, self.backend.generate(requests, sampling))

    def choice_logprobs(
        self, requests: Sequence[Request], choices: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Failure]:
        """See `Backend.choice_logprobs`."""
        replies = self.backend.choice_logprobs(requests, choices)
        return self._written("choice_logprobs", requests, replies)

    def answer_logprobs(self, requests: Sequence[Request], answers: Sequence[str]) -> list[AnswerLogprob | Failure]:
        """See `Backend.answer_logprobs`."""
        replies = self.backend.answer_logprobs(requests, answers)
        return self._written("answer_logprobs", requests, replies, answers)

    def rate(self, requests: Sequence[Request], answers: Sequence[str]) -> list[float]:
        """See `RewardModelBackend.rate`."""
        return self._written("rate", requests, self.backend.rate(requests, answers), answers)

    def rate_steps(self, requests: Sequence[Request], answers: Sequence[Sequence[str]]) -> list[list[float]]:
        """See `ProcessRewardBackend.rate_steps`."""
        return self._written("rate_steps", requests, self.backend.rate_steps(requests, answers), answers)

    def _written(
        self, call: str, requests: Sequence[Request], replies: Any, answers: Sequence[Any] | None = None
    ) -> Any:
        with self.path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            for index, (request, reply) in enumerate(zip(requests, replies, strict=True)):
                line = {"call": call, "request": asdict(request), "reply": _plain(reply)}
                if answers is not None:
                    line["answer"] = answers[index]
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
        return replies


def _plain(reply: Any) -> Any:
    if isinstance(reply, list):
        return [_plain(item) for item in reply]
    return asdict(reply) if is_dataclass(reply) and not isinstance(reply, type) else reply


class _Actor:
    """A `Worker` in a process of its own.

    The user's faults travel as a value: as exceptions they would reach the user wrapped in Ray's, and one from
    the constructor would be tried again and again.
    """

    def __init__(self, raw: Mapping[str, Any], stage: str, debug: Path | None) -> None:
        self.arguments = raw, stage, debug
        self.worker: Worker | None = None

    def work(self, batch: Sequence[Row]) -> tuple[list[Row], Usage] | str:
        try:
            if self.worker is None:
                self.worker = Worker(*self.arguments)
            return self.worker(batch)
        except UniDPOError as error:
            return str(error)


def stream(
    config: EngineConfig, stage: str, batches: Sequence[Sequence[Row]], debug: Path | None
) -> Iterator[tuple[list[Row], Usage]]:
    """Do a stage's batches on Ray; yield each batch's rows and cost as it is done, in any order.

    Every batch is one task: what a worker had in hand when it died is done again by its successor, and
    nothing else. The batches are those of a run in one process, so their rows are the same too.

    Raises:
        UniDPOError: no cluster answers at `address`, this machine has too few GPUs, workers die again and again, or
            what a worker raised.
    """
    import ray
    from ray.exceptions import OutOfMemoryError, RayActorError
    from ray.util import ActorPool

    options = config.settings.ray
    count = min(options.workers, len(batches))
    started = not ray.is_initialized()
    if started:
        _start(options, count)
    actor = ray.remote(_Actor).options(
        num_cpus=options.cpus_per_worker,
        num_gpus=options.gpus_per_worker or None,
        max_restarts=RESTARTS * len(batches),
        max_task_retries=RESTARTS,
    )
    try:
        actors = [actor.remote(config.raw, stage, debug) for _ in range(count)]
        for result in ActorPool(actors).map_unordered(lambda one, batch: one.work.remote(batch), batches):
            if isinstance(result, str):
                raise UniDPOError(result)
            yield result
    except (RayActorError, OutOfMemoryError) as error:
        raise UniDPOError(
            f"stage {stage}: a worker of Ray died {RESTARTS + 1} times over the same questions. What is done is kept. "
            f"Give each worker more memory, or make batch_size smaller. Ray says: {str(error).strip().splitlines()[-1]}"
        ) from error
    finally:
        if started:
            ray.shutdown()


def _start(options: RayOptions, workers: int) -> None:
    """Join the cluster at `address`, or start one on this machine that has what `workers` reserve."""
    import ray

    own = {} if options.address else {"num_cpus": _cpus(workers * options.cpus_per_worker)}
    try:
        _check_port(options.address)
        ray.init(address=options.address, log_to_driver=False, include_dashboard=False, logging_level="warning", **own)
    except (OSError, RuntimeError, ValueError) as error:
        where = (
            f"ray.address: no cluster answers at {options.address}" if options.address else "Ray does not start here"
        )
        raise UniDPOError(f"{where}: {str(error).strip().splitlines()[0]}") from error
    wanted, there = workers * options.gpus_per_worker, ray.cluster_resources().get("GPU", 0)
    if not options.address and wanted > there:
        ray.shutdown()
        raise UniDPOError(
            f"ray.gpus_per_worker: {workers} workers reserve {wanted:g} GPUs, and this machine has {there:g}. "
            "Set ray.workers or ray.gpus_per_worker lower; a share such as 0.5 puts two workers on one GPU"
        )


def _check_port(address: str | None) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray tries for two minutes and then ends the process."""
    host, _, port = (address or "").rpartition("/")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()


def _cpus(wanted: float) -> int:
    return max(int(wanted) + 1, os.cpu_count() or 1)
