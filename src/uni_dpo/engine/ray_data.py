"""A stage over Ray Data: actors hold the models, batches stream through them, a dead actor's batch is done again."""

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.data

from uni_dpo.engine.config import EngineConfig
from uni_dpo.engine.records import Row
from uni_dpo.engine.worker import Worker
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Usage


class _Actor:
    """A `Worker` in a process of its own. Rows travel as JSON, so that Arrow has no schema to guess.

    The user's faults travel as a field: as exceptions they would reach the user wrapped in Ray's, and one from
    the constructor would be tried again and again.
    """

    def __init__(self, raw: Mapping[str, Any], stage: str, debug: Path | None) -> None:
        self.arguments = raw, stage, debug
        self.worker: Worker | None = None

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        try:
            if self.worker is None:
                self.worker = Worker(*self.arguments)
            rows, usage = self.worker(json.loads(item["batch"]))
        except UniDPOError as error:
            return {"rows": "[]", "usage": "{}", "error": str(error)}
        return {"rows": json.dumps(rows), "usage": json.dumps(asdict(usage)), "error": ""}


def stream(
    config: EngineConfig, stage: str, batches: Sequence[Sequence[Row]], debug: Path | None
) -> Iterator[tuple[list[Row], Usage]]:
    """Do a stage's batches on Ray; yield each batch's rows and cost as it is done, in any order.

    Every batch is one task: what a worker had in hand when it died is done again by its successor, and
    nothing else. The batches are those of a run in one process, so their rows are the same too.
    """
    options = config.settings.ray
    started = not ray.is_initialized()
    if started:
        own = {} if options.address else {"num_cpus": _cpus(options.workers * options.cpus_per_worker)}
        ray.init(address=options.address, log_to_driver=False, include_dashboard=False, logging_level="warning", **own)
    ray.data.DataContext.get_current().enable_progress_bars = False  # the engine shows its own
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    try:
        items = [{"batch": json.dumps(batch)} for batch in batches]
        results = ray.data.from_items(items, override_num_blocks=len(items)).map(
            _Actor,
            fn_constructor_args=(config.raw, stage, debug),
            num_cpus=options.cpus_per_worker,
            num_gpus=options.gpus_per_worker or None,
            compute=ray.data.ActorPoolStrategy(size=min(options.workers, len(items))),
        )
        for result in results.iter_rows():
            if result["error"]:
                raise UniDPOError(result["error"])
            yield json.loads(result["rows"]), Usage(**json.loads(result["usage"]))
    finally:
        if started:
            ray.shutdown()


def _cpus(wanted: float) -> int:
    return max(int(wanted) + 1, os.cpu_count() or 1)
