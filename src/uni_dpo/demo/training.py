"""LlamaFactory runs inside the demo: their words in a log file, their progress on the terminal."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm
from transformers import TrainerCallback
from transformers.utils import logging

from uni_dpo.llamafactory import register


def train(config: dict[str, Any], *, title: str, log: Path) -> None:
    """Run LlamaFactory on `config` in this process.

    Args:
        config: what a YAML file for `uni-dpo train` would say.
        title: of the progress bar.
        log: file to which everything that the run prints is appended.
    """
    with printing_to(log) as terminal:
        register()
        from llamafactory.train.tuner import run_exp

        run_exp(dict(config), callbacks=[_Progress(title, terminal)])


class _Progress(TrainerCallback):
    """Steps done, steps in all, time left and the latest loss."""

    def __init__(self, title: str, terminal: TextIO) -> None:
        self.bar = tqdm(desc=title, unit="step", file=terminal, mininterval=0.5)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.reset(total=state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.update(1)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{logs['loss']:.4f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.bar.close()


@contextmanager
def printing_to(log: Path) -> Iterator[TextIO]:
    """Send what this process prints, C libraries included, to `log`; yield the terminal."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    kept = {stream: os.dup(stream) for stream in (1, 2)}
    with log.open("a", encoding="utf-8") as file, os.fdopen(os.dup(kept[2]), "w") as terminal:
        for stream in kept:
            os.dup2(file.fileno(), stream)
        try:
            yield terminal
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, original in kept.items():
                os.dup2(original, stream)
                os.close(original)
            # LlamaFactory makes transformers talkative for the rest of the process.
            logging.set_verbosity_error()
            logging.disable_progress_bar()
