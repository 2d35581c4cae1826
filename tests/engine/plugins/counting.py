"""A backend for the runner's tests: answers from the request alone, counts its calls, and fails or dies on demand."""

import hashlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

from uni_dpo.engine import register
from uni_dpo.models.backends import Failure, Sample, Usage
from uni_dpo.settings.options import runtime


@dataclass(frozen=True)
class CountingOptions:
    """`log` gets a line per request; `fail` names the question of whose requests none succeeds; see `die_once`;
    a `deadly` one ends its process at every request; `nodes` is a folder that gets a file per node of Ray: requests
    wait until there are two, and on the node named `held` for ever.
    """

    model: str = ""
    vocabulary: int = 5
    log: str = runtime("")
    fail: str = runtime("")
    die_once: str = runtime("")
    deadly: bool = runtime(False)
    nodes: str = runtime("")
    held: str = runtime("")


@register("backend", "counting")
class Counting:
    Options = CountingOptions

    def __init__(self, options: CountingOptions) -> None:
        self.options = options
        self.usage = Usage()

    def generate(self, requests, sampling):
        return [self._answer(request, sampling.n) for request in requests]

    def _answer(self, request, n):
        self.usage.add(Usage(requests=1, completion_tokens=n, cost=0.01))
        if self.options.log:
            with Path(self.options.log).open("a") as file:
                file.write(f"{request.images[0] if request.images else request.prompt}\n")
        if self.options.nodes:
            self._show_node()
        if self.options.deadly or (self.options.die_once and self._is_first()):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.options.fail and self.options.fail in "".join(request.images):
            return Failure("server on fire")
        return [
            Sample(str(hashlib.sha256(f"{request.seed}{i}".encode()).digest()[0] % self.options.vocabulary), 1, True)
            for i in range(n)
        ]

    def _show_node(self):
        import ray

        node = Path(self.options.nodes) / ray.get_runtime_context().get_node_id()
        node.touch()
        while node.name == self.options.held or len(list(node.parent.iterdir())) < 2:
            time.sleep(0.05)

    def _is_first(self):
        """Whether no process has been ended yet; from now on one has."""
        try:
            Path(self.options.die_once).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


@register("grader", "size")
def size(answer, question):
    return int(answer) / 10
