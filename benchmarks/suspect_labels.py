"""Swap 15 % of the demo's labels on purpose: how many of the pairs that the page calls suspect are the swapped ones?

    python benchmarks/suspect_labels.py FOLDER [--seeds 0 1 2] [--share 0.15]

For each seed the demo's model is trained on all pairs with some swapped, again without those that were suspect, and on
the pairs before any was swapped. Printed: precision and recall of `suspect label`, and how many held-out images each
model names right. FOLDER may be one that `recorded_runs.py` has filled: the warmed-up model and the pairs are the same.
"""

import argparse
import random
from pathlib import Path
from typing import Any

import demo_training
from demo_training import COLUMNS, exact_match, make_pairs, warm_up, write_data
from recorded_runs import GOOD

from uni_dpo.demo.digits import write_digits
from uni_dpo.demo.tiny_model import IMAGE_SIDE
from uni_dpo.ledger.reading import read_ledger
from uni_dpo.ledger.summary import SUSPECT_LABEL, group_pairs, pair_history


def swap(rows: list[dict[str, Any]], share: float, seed: int) -> set[int]:
    """Swap the answers of some rows, in place, their scores staying where they are; return which."""
    swapped = set(random.Random(seed).sample(range(len(rows)), round(share * len(rows))))
    for at in swapped:
        rows[at]["chosen"], rows[at]["rejected"] = rows[at]["rejected"], rows[at]["chosen"]
    return swapped


def train(start: Path, rows: list[dict[str, Any]], folder: Path, seed: int) -> Path:
    """Train on rows, where that has not been done; return the output folder."""
    output = folder / "checkpoint"
    if not (output / "trainer_state.json").exists():
        write_data(folder / "data", rows, {"ranking": True, "columns": COLUMNS})
        where = {
            "model_name_or_path": str(start), "output_dir": str(output),
            "dataset_dir": str(folder / "data"), "seed": seed,
        }  # fmt: skip
        demo_training.train(GOOD | where)
    return output


def main() -> None:
    """Run every seed and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--share", type=float, default=0.15)
    options = parser.parse_args()
    folder = options.folder.resolve()
    digits = write_digits(folder / "images", side=IMAGE_SIDE, seed=0)
    start = warm_up(folder / "warm_up", digits["train"])
    pairs = make_pairs(start, folder / "pairs", digits["preference"])
    for seed in options.seeds:
        rows = [dict(row) for row in pairs]
        swapped = swap(rows, options.share, seed)
        place = folder / "suspects" / str(seed)
        output = train(start, rows, place / "swapped", seed)
        history = pair_history(read_ledger(output))
        suspect = group_pairs(history)[SUSPECT_LABEL]
        found = {int(name.rsplit(" ", 1)[1]) for name, bad in zip(history.pairs, suspect, strict=True) if bad}
        kept = [row for at, row in enumerate(rows) if at not in found]
        outputs = {
            "swapped": output,
            "without suspects": train(start, kept, place / "without", seed),
            "clean": train(start, pairs, place / "clean", seed),
        }
        right = {name: exact_match(model, digits["held_out"]) for name, model in outputs.items()}
        hits = len(found & swapped)
        print(
            f"seed {seed}: {len(rows)} pairs, {len(swapped)} swapped, {len(found)} suspect: precision "
            f"{hits / max(1, len(found)):.0%}, recall {hits / len(swapped):.0%}; held-out images right: "
            + ", ".join(f"{name} {share:.1%}" for name, share in right.items()),
            flush=True,
        )


if __name__ == "__main__":
    main()
