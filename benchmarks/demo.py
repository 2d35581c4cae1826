"""What the demo's numbers rest on.

python benchmarks/demo.py seeds      the demo over seeds 0, 1 and 2: held-out accuracy, mean and spread
python benchmarks/demo.py settings   candidates for the demo's settings, on the validation split of seed 0
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from uni_dpo.demo import stages
from uni_dpo.demo.digits import write_digits
from uni_dpo.demo.run import run_demo
from uni_dpo.demo.settings import DPO, UNI_DPO, DemoSettings
from uni_dpo.demo.tiny_model import IMAGE_SIDE

UNI_DPO_CANDIDATES: tuple[dict[str, Any], ...] = (
    {"uni_dpo_nll_lambda": 0.001},
    {"uni_dpo_nll_lambda": 0.2},
    {"uni_dpo_nll_lambda": 1.0},
    {"uni_dpo_nll_lambda": 1.0, "learning_rate": 3e-4},
    {"uni_dpo_nll_lambda": 1.0, "uni_dpo_qual_eta": 0.0},
    {"uni_dpo_nll_lambda": 1.0, "uni_dpo_perf_gamma": 0.0},
)
DPO_CANDIDATES: tuple[dict[str, Any], ...] = (
    {"learning_rate": 3e-5, "pref_beta": 0.5},
    {"learning_rate": 3e-5, "pref_beta": 0.1},
    {"learning_rate": 1e-4, "pref_beta": 0.5},
    {"learning_rate": 1e-4, "pref_beta": 0.1},
    {"learning_rate": 1e-4, "pref_beta": 0.5, "pref_ftx": 1.0},
    {"learning_rate": 1e-3, "pref_beta": 0.5, "pref_ftx": 1.0},
)


def seeds(folder: Path, console: Console) -> None:
    """Run the demo for three seeds and print the held-out accuracies."""
    results = [run_demo(folder / f"seed_{seed}", DemoSettings(seed=seed), console) for seed in range(3)]
    table = Table(title="held-out images answered right, word for word, in per cent")
    for column in ("model", "seed 0", "seed 1", "seed 2", "mean", "spread (standard deviation)"):
        table.add_column(column, justify="left" if column == "model" else "right")
    shares = {model: [100 * result.held_out[model] for result in results] for model in results[0].held_out}
    gains = {
        f"{model}, gain": [after - before for after, before in zip(shares[model], shares["warm-up"], strict=True)]
        for model in shares
        if model != "warm-up"
    }
    for row, values in {**shares, **gains}.items():
        cells = [*values, statistics.mean(values), statistics.stdev(values)]
        table.add_row(row, *(f"{cell:.1f}" for cell in cells))
    console.print(table)


def settings(folder: Path, console: Console) -> None:
    """Train every candidate from one warm-up on one set of pairs and print its validation accuracy."""
    chosen = DemoSettings()
    digits = write_digits(folder / "images", side=IMAGE_SIDE, seed=chosen.seed)
    warm = stages.warm_up(folder / "warm_up", digits["train"], chosen)
    counts = stages.make_pairs(warm, folder / "pairs", digits["preference"], chosen)
    table = Table(title=f"validation images answered right; {counts['pairs']} pairs")
    table.add_column("settings")
    table.add_column("right", justify="right")
    table.add_row("warm-up", f"{stages.exact_match(warm, digits['validation']):.1%}")
    for name, training, change in _candidates():
        words = name + "".join(f" {key}={value}" for key, value in change.items())
        place = folder / words.replace(" ", "_")
        checkpoint = stages.align(warm, folder / "pairs", place, training | change, chosen.seed, title=words)
        table.add_row(words, f"{stages.exact_match(checkpoint, digits['validation']):.1%}")
    console.print(table)


def _candidates() -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for change in UNI_DPO_CANDIDATES:
        yield "Uni-DPO", UNI_DPO, change
    for change in DPO_CANDIDATES:
        yield "DPO", DPO, change


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
