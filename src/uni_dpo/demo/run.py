"""The demo from the first line to the table; a stopped run resumes."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from uni_dpo.demo import stages
from uni_dpo.demo.digits import write_digits, write_mcq, write_vqa
from uni_dpo.demo.settings import DemoSettings
from uni_dpo.demo.tiny_model import IMAGE_SIDE
from uni_dpo.errors import UniDPOError
from uni_dpo.report.curves import draw_runs
from uni_dpo.storage.writing import write_text

MODELS = {"warm-up": "warm_up", "DPO": "dpo", "Uni-DPO": "uni_dpo"}
"""Name in the table → folder."""


@dataclass(frozen=True)
class DemoResult:
    """What the demo measured.

    Attributes:
        pairs: how many scored pairs the model's own answers made.
        held_out: model → share of held-out images answered right, word for word.
        benchmarks: model → benchmark → VLMEvalKit's score, in per cent.
        folder: checkpoints, pairs, logs and figures.
    """

    pairs: int
    held_out: dict[str, float]
    benchmarks: dict[str, dict[str, float]]
    folder: Path


def run_demo(folder: str | Path, settings: DemoSettings, console: Console) -> DemoResult:
    """Run every stage that `folder` does not hold yet, print what happens and the table.

    Raises:
        UniDPOError: `folder` holds a demo of other settings.
    """
    folder = Path(folder).resolve()
    done = _Stages(folder, settings, console)
    digits = write_digits(folder / "images", side=IMAGE_SIDE, seed=settings.seed)
    console.print(f"{sum(map(len, digits.values()))} images of handwritten digits in {folder / 'images'}")

    def checkpoint(name: str) -> Path:
        return folder / MODELS[name] / "checkpoint"

    done.run("warm_up", lambda: str(stages.warm_up(folder / "warm_up", digits["train"], settings)))
    counts = done.run(
        "pairs",
        lambda: stages.make_pairs(checkpoint("warm-up"), folder / "pairs", digits["preference"], settings),
    )
    console.print(f"{counts['pairs']} scored pairs of the model's own answers in {folder / 'pairs' / 'dataset'}")

    def align(name: str, training: dict[str, Any]) -> str:
        place = folder / MODELS[name]
        return str(stages.align(checkpoint("warm-up"), folder / "pairs", place, training, settings.seed, title=name))

    done.run("uni_dpo", lambda: align("Uni-DPO", settings.uni_dpo))
    done.run("dpo", lambda: align("DPO", settings.dpo))
    held_out = done.run(
        "held_out", lambda: {name: stages.exact_match(checkpoint(name), digits["held_out"]) for name in MODELS}
    )
    benchmarks = done.run("benchmarks", lambda: _benchmarks(folder, digits["held_out"], settings.seed))
    draw_runs({name: checkpoint(name) for name in ("Uni-DPO", "DPO")}, folder / "curves.png")
    result = DemoResult(counts["pairs"], held_out, benchmarks, folder)
    console.print(_table(result, len(digits["held_out"])))
    console.print(f"Checkpoints, pairs, logs and curves.png are in {folder}")
    return result


class _Stages:
    """Results of finished stages, kept in `demo.json` beside the settings that made them."""

    def __init__(self, folder: Path, settings: DemoSettings, console: Console) -> None:
        self.file = folder / "demo.json"
        self.console = console
        record = stages.settings_record(settings)
        self.state = json.loads(self.file.read_text()) if self.file.exists() else {"settings": record, "done": {}}
        if self.state["settings"] != record:
            raise UniDPOError(f"{folder} holds a demo of other settings: name another --output, or delete it")

    def run(self, stage: str, action: Callable[[], Any]) -> Any:
        """The stage's result: from the last run where it was finished, else by doing it now."""
        if stage not in self.state["done"]:
            self.state["done"][stage] = action()
            write_text(self.file, json.dumps(self.state, indent=1))
        return self.state["done"][stage]


def _benchmarks(folder: Path, digits: list[Any], seed: int) -> dict[str, dict[str, float]]:
    from uni_dpo.vlmeval.run import Options, evaluate_tables

    tables = {
        "digits_mcq": write_mcq(digits, folder / "benchmarks" / "digits_mcq.tsv", seed=seed),
        "digits_vqa": write_vqa(digits, folder / "benchmarks" / "digits_vqa.tsv"),
    }
    # The tiny model knows one question, word for word; VLMEvalKit's own wordings would measure something else.
    plain = {name: {"path": str(path), "prompt": "plain"} for name, path in tables.items()}
    models = {name: {"model_path": str(folder / place / "checkpoint"), "max_new_tokens": stages.MAX_TOKENS}
              for name, place in MODELS.items()}  # fmt: skip
    results = evaluate_tables(models, plain, folder / "benchmarks", Options(seed=seed))
    if results.failures:
        line = results.failures[0]
        raise UniDPOError(f"{line.benchmark} of {line.model}: {line.reason}")
    return {model: {table: results.value(model, table) for table in tables} for model in models}


def _table(result: DemoResult, images: int) -> Table:
    table = Table(title=f"{images} held-out images, {result.pairs} pairs of the model's own answers")
    table.add_column("model")
    for column in ("right, word for word", "change", "multiple choice", "free answer"):
        table.add_column(column, justify="right")
    before = result.held_out["warm-up"]
    for name, share in result.held_out.items():
        scores = result.benchmarks[name]
        table.add_row(
            name,
            f"{share:.1%}",
            f"{100 * (share - before):+.1f} points" if name != "warm-up" else "",
            f"{scores['digits_mcq']:.1f}",
            f"{scores['digits_vqa']:.1f}",
        )
    return table
