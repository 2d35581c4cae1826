"""Train the demo's model well and badly, and record what happened, for the tests of the verdicts.

    python benchmarks/recorded_runs.py FOLDER                train every run that FOLDER does not hold yet
    python benchmarks/recorded_runs.py FOLDER --write        and write tests/ledger/recorded/NAME.json from them

Each run takes a minute on two cores. A record holds the settings, the log and what the ledger says per window of steps.
"""

import argparse
import dataclasses
import json
import random
from pathlib import Path
from typing import Any

from demo_training import COLUMNS, make_pairs, train, warm_up, write_data

from uni_dpo.demo.digits import write_digits
from uni_dpo.demo.tiny_model import IMAGE_SIDE
from uni_dpo.ledger.reading import evidence_of
from uni_dpo.ledger.verdicts import judge
from uni_dpo.storage.writing import write_text

PAIRS = 320
GOOD: dict[str, Any] = {
    "stage": "dpo", "pref_loss": "uni_dpo", "uni_dpo_nll_lambda": 1.0, "learning_rate": 1e-3, "num_train_epochs": 4,
    "per_device_train_batch_size": 16, "logging_steps": 4, "save_strategy": "no",
}  # fmt: skip

RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "good": ({}, "as it is"),
    "good_dpo": ({"pref_loss": "sigmoid", "pref_beta": 0.5, "learning_rate": 3e-5}, "as it is"),
    "dpo_collapse": ({"pref_loss": "sigmoid", "pref_beta": 0.5, "learning_rate": 1e-3}, "as it is"),
    "no_nll": ({"uni_dpo_nll_lambda": 0.0}, "as it is"),
    "lambda_too_small": ({"uni_dpo_nll_lambda": 0.001}, "as it is"),
    "tau_good_too_high": ({"uni_dpo_tau_good": 9.0}, "as it is"),
    "eta_flat": ({"uni_dpo_qual_eta": 0.005}, "as it is"),
    "tau_ref_too_low": ({"uni_dpo_tau_ref": -8.0}, "as it is"),
    "tau_ref_too_high": ({"uni_dpo_tau_ref": 30.0}, "as it is"),
    "learning_rate_too_high": ({"learning_rate": 5e-2}, "as it is"),
    "learning_rate_too_low": ({"learning_rate": 1e-8}, "as it is"),
    "swapped_labels": ({}, "swapped"),
    "length_bias": ({}, "long"),
    "equal_scores": ({}, "equal"),
}
"""Name → settings that differ from `GOOD`, and what is done to the data."""


def spoiled(rows: list[dict[str, Any]], how: str) -> list[dict[str, Any]]:
    """The pairs with a known fault."""
    draw = random.Random(0)
    spoilt = []
    for row in rows:
        row = dict(row)
        if how == "swapped" and draw.random() < 0.45:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
        if how == "long":
            row["chosen"] += " yes" * draw.randint(3, 8)
        if how == "equal":
            row["score_rejected"] = row["score_chosen"]
        spoilt.append(row)
    return spoilt


def train_all(folder: Path) -> None:
    """Train what is not there."""
    digits = write_digits(folder / "images", side=IMAGE_SIDE, seed=0)
    start = warm_up(folder / "warm_up", digits["train"])
    rows = make_pairs(start, folder / "pairs", digits["preference"])
    rows = random.Random(0).sample(rows, min(PAIRS, len(rows)))
    for how in {how for _, how in RUNS.values()}:
        write_data(folder / "data" / how.replace(" ", "_"), spoiled(rows, how), {"ranking": True, "columns": COLUMNS})
    for name, (changed, how) in RUNS.items():
        output = folder / "runs" / name
        if (output / "trainer_state.json").exists():
            continue
        where = {
            "model_name_or_path": str(start), "output_dir": str(output),
            "dataset_dir": str(folder / "data" / how.replace(" ", "_")), "seed": 0,
        }  # fmt: skip
        try:
            train(GOOD | changed | where)
        except Exception as error:  # a run may well die of its settings
            print(f"{name}: {error}")


def write_records(folder: Path, records: Path) -> None:
    """Write what verdicts rest on of every run, and print what they say."""
    for name in RUNS:
        output = folder / "runs" / name
        evidence = evidence_of(output, count=24)
        write_text(records / f"{name}.json", json.dumps(rounded(dataclasses.asdict(evidence)), separators=(",", ":")))
        found = [verdict for verdict in judge(evidence) if verdict.state != "good"]
        print(f"{name}: {'; '.join(f'{verdict.state}: {verdict.sentence()}' for verdict in found) or 'all good'}")


def rounded(value: Any) -> Any:
    """The same with four digits of every number, which is what a record needs."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    """Train, and write the records where it is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    train_all(options.folder.resolve())
    if options.write:
        write_records(options.folder.resolve(), Path(__file__).parents[1] / "tests" / "ledger" / "recorded")


if __name__ == "__main__":
    main()
