"""What a training shows while it runs: its pace, and per logging step a line of averages over the pairs since."""

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from transformers import TrainerCallback

GIB = 2**30


class ProgressLines(TrainerCallback):
    """Prints one line per logging step and per evaluation; in a terminal with a bar below them.

    Args:
        reference_beta: β where the logged rewards are β times what the policy gained on a reference, else None; asked
            for when a line is made, as is `unit`.
        unit: what a batch is counted in.
    """

    def __init__(
        self, reference_beta: Callable[[], float | None] = lambda: None, unit: Callable[[], str] = lambda: "pairs"
    ) -> None:
        self._reference_beta, self._unit = reference_beta, unit
        self._bar: tqdm[Any] | None = None
        self._first: float | None = None
        self._begun = self._last = (0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Begin to count."""
        self._begun = self._last = (state.global_step, time.monotonic())
        if state.is_world_process_zero and sys.stderr.isatty():
            self._bar = tqdm(total=state.max_steps, initial=state.global_step, unit="step", leave=False)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Move the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print the line of these metrics."""
        if not logs or not state.is_world_process_zero:
            return
        if "loss" in logs:
            line = train_line(logs, state.global_step, state.max_steps, self._drift(logs))
            self._say(line + self._pace(args, state))
        elif "train_runtime" in logs:
            steps = state.global_step - self._begun[0]
            self._say(f"trained {steps:,} steps in {clock(logs['train_runtime'])}")
        elif line := evaluation_line(logs, state.global_step):
            self._say(line)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _say(self, line: str) -> None:
        if self._bar is None:
            print(line, file=sys.stderr, flush=True)
        else:
            self._bar.write(line, file=sys.stderr)

    def _drift(self, logs: Mapping[str, Any]) -> float | None:
        """How far the chosen answers are from the reference or, without one, from the first line, in nats."""
        chosen, beta = logs.get("logps/chosen"), self._reference_beta()
        if chosen is None:
            return None
        if beta is not None and "rewards/chosen" in logs:
            return float(logs["rewards/chosen"]) / beta
        self._first = chosen if self._first is None else self._first
        return float(chosen - self._first)

    def _pace(self, args: Any, state: Any) -> str:
        (step, before), now = self._last, time.monotonic()
        self._last = (state.global_step, now)
        done, left = state.global_step - self._begun[0], state.max_steps - state.global_step
        pairs = args.train_batch_size * args.gradient_accumulation_steps * args.world_size * (state.global_step - step)
        pace = f"  {pairs / (now - before):.3g} {self._unit()}/s" if now > before else ""
        return f"{pace}  {clock((now - self._begun[1]) / done * left)} left" if done else pace


def train_line(logs: Mapping[str, Any], step: int, steps: int, drift: float | None = None) -> str:
    """Return the metrics of a logging step that a person reads, those that are there.

    Args:
        logs: by their names in `trainer_state.json`.
        step, steps: taken, and in all.
        drift: of the chosen answers' log-probability, in nats.
    """
    parts = [f"step {step:>{len(str(steps))}}/{steps}", f"loss {logs['loss']:.4f}"]
    for name, metric, form in (
        ("acc", "rewards/accuracies", "{:.2f}"),
        ("margin", "rewards/margins", "{:+.3f}"),
        ("logp", "logps/chosen", "{:.3f}"),
        ("w_qual", "uni_dpo/w_qual", "{:.2f}"),
        ("w_perf", "uni_dpo/w_perf", "{:.2f}"),
        ("nll", "uni_dpo/nll_active", "{:.0%}"),
    ):
        if metric in logs:
            parts.append(f"{name} {form.format(logs[metric])}")
        if name == "logp" and drift is not None:
            parts[-1] += f" ({drift:+.3f})"
    if "logps/chosen" not in logs and "learning_rate" in logs:
        parts.append(f"lr {logs['learning_rate']:.2e}")
    return "  ".join(parts)


def evaluation_line(logs: Mapping[str, Any], step: int) -> str:
    """Return the metrics of an evaluation that a person reads; empty where these are none."""
    forms = {"acc": ("rewards/accuracies", "{:.2f}"), "margin": ("rewards/margins", "{:+.3f}")}
    shown = []
    for loss in (name for name in logs if name.endswith("_loss")):
        shown.append(f"{loss} {logs[loss]:.4f}")
        for short, (metric, form) in forms.items():
            found = logs.get(loss.removesuffix("loss") + metric, logs.get(f"eval_{metric}"))
            shown += [] if found is None else [f"{short} {form.format(found)}"]
    return f"evaluated at step {step}: {'  '.join(shown)}" if shown else ""


def clock(seconds: float) -> str:
    """Return a span of time as h:mm:ss, or m:ss where it is below an hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


class PairAverages:
    """Sums per phase and name, weighted by pairs: a short last batch counts for what it holds."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._sums: dict[str, Tensor] = defaultdict(self._zeros)

    def add(self, phase: str, values: dict[str, Tensor]) -> None:
        """Add one batch: for every name a tensor of shape (pairs,)."""
        pairs = len(values[self.names[0]])
        sums = [values[name].detach().double().sum().item() for name in self.names]
        self._sums[phase] += torch.tensor([*sums, pairs], dtype=torch.float64)

    def take(self, phase: str, accelerator: Any) -> dict[str, float]:
        """Return the averages over all ranks since the last call, or nothing where no pair was seen.

        All ranks must call it together.
        """
        sums = accelerator.reduce(self._sums.pop(phase, self._zeros()).float().to(accelerator.device))
        *totals, pairs = sums.tolist()
        return {name: total / pairs for name, total in zip(self.names, totals, strict=True)} if pairs else {}

    def _zeros(self) -> Tensor:
        return torch.zeros(len(self.names) + 1, dtype=torch.float64)


class Pace:
    """Counts what is trained on, and the time that it takes; what is done between, such as an evaluation, is not."""

    def __init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Count from now."""
        self._begun, self._pairs = time.monotonic(), 0
        self._tokens: list[Tensor] = []

    def add(self, pairs: int, tokens: Tensor) -> None:
        """Count one batch of this process: its pairs, and the scored tokens of their answers (any shape)."""
        self._pairs += pairs
        self._tokens.append(tokens.detach().sum())

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time that the block takes."""
        before = time.monotonic()
        try:
            yield
        finally:
            self._begun += time.monotonic() - before

    def take(self, accelerator: Any) -> dict[str, float]:
        """Return what all processes did per second since the last call, and this one's memory.

        All processes must call it together.

        Returns:
            `pairs_per_second`, `tokens_per_second`, `memory_gib`; nothing where no pair was trained on.
        """
        seconds = time.monotonic() - self._begun
        counts = torch.tensor([self._pairs, sum(float(part) for part in self._tokens)], dtype=torch.float32)
        pairs, tokens = accelerator.reduce(counts.to(accelerator.device)).tolist()
        self.begin()
        if not pairs or seconds <= 0:
            return {}
        return {
            "pairs_per_second": pairs / seconds,
            "tokens_per_second": tokens / seconds,
            "memory_gib": memory_gib(accelerator.device),
        }


def memory_gib(device: Any) -> float:
    """Return the most memory that this process has held: of its accelerator, or else of the machine; in GiB."""
    kind = torch.device(device).type
    if kind != "cpu" and hasattr(module := torch.get_device_module(kind), "max_memory_allocated"):
        return float(module.max_memory_allocated()) / GIB
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / GIB
