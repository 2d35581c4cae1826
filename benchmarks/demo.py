"""What the demo's numbers rest on.

python benchmarks/demo.py seeds      the demo over seeds 0, 1 and 2: test accuracy, mean and spread
python benchmarks/demo.py settings   candidates for the demo's settings, on the validation questions of seed 0
"""

import argparse
import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

from uni_dpo.align.config import AlignConfig
from uni_dpo.align.layout import WorkLayout
from uni_dpo.align.run import run_align
from uni_dpo.demo.task import QUESTION_FILES, write_task

EXAMPLE = Path(__file__).parents[1] / "examples" / "align" / "digits.yaml"
UNI_DPO: tuple[dict[str, Any], ...] = (
    {"uni_dpo_nll_lambda": 0.001},
    {"uni_dpo_nll_lambda": 0.2},
    {"uni_dpo_nll_lambda": 1.0, "learning_rate": 3e-4},
    {"uni_dpo_nll_lambda": 1.0, "uni_dpo_qual_eta": 0.0},
    {"uni_dpo_nll_lambda": 1.0, "uni_dpo_perf_gamma": 0.0},
)
DPO: tuple[dict[str, Any], ...] = (
    {"learning_rate": 3e-5, "pref_beta": 0.5},
    {"learning_rate": 3e-5, "pref_beta": 0.1},
    {"learning_rate": 1e-4, "pref_beta": 0.5},
    {"learning_rate": 1e-4, "pref_beta": 0.1},
    {"learning_rate": 1e-4, "pref_beta": 0.5, "pref_ftx": 1.0},
    {"learning_rate": 1e-3, "pref_beta": 0.5, "pref_ftx": 1.0},
)


def demo(folder: Path, seed: int, **changed: Any) -> AlignConfig:
    """The demo's configuration with its task in `folder`."""
    task = write_task("digits", folder / "task", seed=seed)
    raw = yaml.safe_load(EXAMPLE.read_text(encoding="utf-8"))
    raw |= {"model": str(task / "model"), "work_dir": str(folder / "work"), "seed": seed}
    files = dict(zip(("questions", "validation", "test"), QUESTION_FILES.values(), strict=True))
    raw |= {key: str(task / f"{name}.jsonl") for key, name in files.items()}
    raw["warm_up"] |= {"dataset_dir": str(task)}
    return AlignConfig(raw | {"benchmarks": {}} | changed)


def seeds(folder: Path, console: Console) -> None:
    """Run the demo for three seeds and print the test accuracies."""
    shares: dict[str, list[float]] = {}
    for seed in range(3):
        config = demo(folder / f"seed_{seed}", seed)
        run_align(config)
        for row in json.loads((config.work / "summary.json").read_text(encoding="utf-8"))["test"]:
            shares.setdefault(row["model"], []).append(row["mean"])
    gains = {
        f"{model}, gain": [after - before for after, before in zip(values, shares["before"], strict=True)]
        for model, values in shares.items()
        if model != "before"
    }
    table = Table(title="test images answered right, word for word, in per cent")
    for column in ("model", "seed 0", "seed 1", "seed 2", "mean", "spread (standard deviation)"):
        table.add_column(column, justify="left" if column == "model" else "right")
    for row, values in {**shares, **gains}.items():
        cells = [*values, statistics.mean(values), statistics.stdev(values)]
        table.add_row(row, *(f"{cell:.1f}" for cell in cells))
    console.print(table)


def settings(folder: Path, console: Console) -> None:
    """Train every candidate on one set of pairs, as baselines of one run, and print its validation accuracy."""
    losses = [("Uni-DPO", {}, change) for change in UNI_DPO]
    losses += [("DPO", {"pref_loss": "sigmoid"}, change) for change in DPO]
    named = {f"candidate-{number}": (name, loss | change) for number, (name, loss, change) in enumerate(losses)}
    baselines = {key: options for key, (_, options) in named.items()}
    config = demo(folder, 0, baselines=baselines)
    run_align(config)
    own, *others = WorkLayout(config).arms(1)
    table = Table("settings", "right", title="validation images answered right")
    choice = own.choice()
    assert choice is not None
    table.add_row("warm-up", f"{choice.before:.1f} %")
    table.add_row("Uni-DPO, the demo's", f"{choice.means[choice.candidate]:.1f} %")
    for arm in others:
        name, options = named[arm.name.partition("/")[2]]
        found = arm.choice()
        assert found is not None
        table.add_row(_words(name, options), f"{found.means[found.candidate]:.1f} %")
    console.print(table)


def _words(name: str, options: Mapping[str, Any]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in options.items() if key != "pref_loss")])


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["seeds", "settings"])
    parser.add_argument("--output", type=Path, default=Path("outputs/demo_benchmark"))
    arguments = parser.parse_args()
    run = {"seeds": seeds, "settings": settings}[arguments.what]
    run((arguments.output / arguments.what).resolve(), Console(width=140))


if __name__ == "__main__":
    main()
