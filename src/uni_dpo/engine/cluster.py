"""A stage's batches on Ray: workers on every node of a cluster, replaced where they die."""

import os
import socket
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from uni_dpo.engine.config import EngineConfig, RayOptions
from uni_dpo.engine.records import Row
from uni_dpo.engine.worker import Worker
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Usage

RESTARTS = 3
"""How often a batch is done again whose worker died."""
PATIENCE = 20.0
"""Seconds without any worker after which it is said that the cluster has no place for one."""


class _Actor:
    """A `Worker` in a process of its own, in the folder in which the run was started.

    The user's faults travel as a value: as exceptions they would reach the user wrapped in Ray's.
    """

    def __init__(self, folder: str, raw: Mapping[str, Any], stage: str, debug: Path | None) -> None:
        self.folder = folder
        self.arguments = raw, stage, debug
        self.worker: Worker | None = None

    def start(self) -> str | None:
        try:
            os.chdir(self.folder)
        except OSError as error:
            return (
                f"ray.address: on the node {socket.gethostname()}, {self.folder} cannot be entered there "
                f"({error.strerror}); paths have to mean the same on every node"
            )
        return None

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

    Every batch is one task: what a worker had in hand when it died, or when its node did, is done again by another,
    and nothing else. The batches are those of a run in one process, so their rows are the same too.

    Raises:
        UniDPOError: no cluster answers at `address`, no node has what a worker reserves, workers die again and again,
            or what a worker raised.
    """
    import ray

    options = config.settings.ray
    count = min(options.workers, len(batches))
    started = not ray.is_initialized()
    if started:
        _start(options, count)
    try:
        _check_room(options, count)
        actor = ray.remote(_Actor).options(
            num_cpus=options.cpus_per_worker, num_gpus=options.gpus_per_worker or None, scheduling_strategy="SPREAD"
        )
        crew = _Crew(lambda: actor.remote(str(Path.cwd()), config.raw, stage, debug), stage)
        yield from crew.do(batches, count)
    finally:
        if started:
            ray.shutdown()


class _Crew:
    """Workers of which each has one batch at a time.

    A worker gets none before the cluster has given it a place: one whose node is gone may wait for another for ever.
    """

    def __init__(self, hire: Callable[[], Any], stage: str) -> None:
        self.hire = hire
        self.stage = stage
        self.at_work: dict[Any, tuple[Any, int | None]] = {}
        """What is waited for → the worker and its batch's place; None where it is starting."""
        self.idle: list[Any] = []
        self.deaths: Counter[int | None] = Counter()

    def do(self, batches: Sequence[Sequence[Row]], count: int) -> Iterator[tuple[list[Row], Usage]]:
        """Let `count` workers do the batches; yield each batch's rows and cost."""
        import ray
        from ray.exceptions import OutOfMemoryError, RayActorError

        left = deque(range(len(batches)))
        for _ in range(count):
            self._add()
        deadline = time.monotonic() + PATIENCE
        while left or self._busy():
            while left and self.idle:
                worker, place = self.idle.pop(), left.popleft()
                self.at_work[worker.work.remote(batches[place])] = worker, place
            for done in ray.wait(list(self.at_work), timeout=1.0)[0]:
                worker, given = self.at_work.pop(done)
                try:
                    result = ray.get(done)
                except (RayActorError, OutOfMemoryError) as error:
                    self._note_death(given, error)
                    left.extend([given] if given is not None else [])
                    self._add()
                    continue
                if isinstance(result, str):
                    raise UniDPOError(result)
                self.idle.append(worker)
                if given is not None:
                    yield result
            if self.idle or self._busy():
                deadline = time.monotonic() + PATIENCE
            elif time.monotonic() > deadline:
                deadline = float("inf")
                there = _listed(ray.available_resources())
                tqdm.write(f"ray: the cluster has no place for a worker yet ({there} free); waiting", file=sys.stderr)

    def _add(self) -> None:
        worker = self.hire()
        self.at_work[worker.start.remote()] = worker, None

    def _busy(self) -> bool:
        return any(place is not None for _, place in self.at_work.values())

    def _note_death(self, place: int | None, error: Exception) -> None:
        """Count it; raise where it is one too many."""
        self.deaths[place] += 1
        if self.deaths[place] <= RESTARTS:
            return
        says = f"Ray says: {str(error).strip().splitlines()[-1]}"
        if place is None:
            raise UniDPOError(f"stage {self.stage}: {RESTARTS + 1} workers of Ray did not start. {says}") from error
        raise UniDPOError(
            f"stage {self.stage}: a worker of Ray died {RESTARTS + 1} times over the same questions. What is done "
            f"is kept. Give each worker more memory, or make batch_size smaller. {says}"
        ) from error


def _start(options: RayOptions, workers: int) -> None:
    """Join the cluster at `address`, or start one on this machine that has what `workers` reserve."""
    import ray
    from ray.exceptions import RayError

    cpus = max(int(workers * options.cpus_per_worker) + 1, os.cpu_count() or 1)
    own = {} if options.address else {"num_cpus": cpus}
    try:
        _check_port(options.address)
        ray.init(address=options.address, log_to_driver=False, include_dashboard=False, logging_level="warning", **own)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        if "AuthenticationError" in f"{error!r} {error.__cause__!r} {error.__context__!r}":
            raise UniDPOError(
                f"ray.address: the cluster at {options.address} asks for its token: copy ~/.ray/auth_token from the "
                "machine where it was started, and set RAY_AUTH_MODE=token on every machine and here"
            ) from error
        where = (
            f"ray.address: no cluster answers at {options.address}" if options.address else "Ray does not start here"
        )
        raise UniDPOError(f"{where}: {str(error).strip().splitlines()[0]}") from error


def _check_room(options: RayOptions, workers: int) -> None:
    """Refuse what no node could ever give, and on this machine alone also more GPUs than it has."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    wanted, there = workers * options.gpus_per_worker, sum(node.get("GPU", 0) for node in nodes)
    if not options.address and wanted > there:
        raise UniDPOError(
            f"ray.gpus_per_worker: {workers} workers reserve {wanted:g} GPUs, and this machine has {there:g}. "
            "Set ray.workers or ray.gpus_per_worker lower; a share such as 0.5 puts two workers on one GPU"
        )
    one = {"CPU": options.cpus_per_worker, "GPU": options.gpus_per_worker}
    if not any(all(node.get(name, 0) >= count for name, count in one.items()) for node in nodes):
        raise UniDPOError(
            f"ray.cpus_per_worker, ray.gpus_per_worker: a worker reserves {_listed(one)}, and no node of the cluster "
            f"has that; its nodes have {'; '.join(map(_listed, nodes))}"
        )


def _listed(resources: Mapping[str, float]) -> str:
    return ", ".join(f"{resources.get(name, 0):g} {name}s" for name in ("CPU", "GPU"))


def _check_port(address: str | None) -> None:
    """Raise OSError where nothing listens at HOST:PORT: Ray tries for two minutes and then ends the process."""
    host, _, port = (address or "").rpartition("/")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
