"""Turn VQA-RAD and a CSV file of rejected answers into preference pairs.

    python scripts/vqa_dpo_processing.py --csv rejected.csv --output data/vqa_rad_dpo

What `CSV` and `OUTPUT` below say is used where a flag is not given. The three functions are
`uni_dpo.data.vqa_rad`'s and may be imported from here.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from uni_dpo.cli import run
from uni_dpo.data.vqa_rad import download_file, load_and_process_vqa_dpo, load_splits, save_dataset
from uni_dpo.errors import UniDPOError
from uni_dpo.storage.writing import check_new

CSV = ""
"""File or address of the rejected answers."""
OUTPUT = "vqa_rad_dpo"
"""Folder that `datasets.load_from_disk` opens."""

__all__ = ["download_file", "load_and_process_vqa_dpo", "save_dataset"]


def main() -> None:
    """Parse, fetch what is named by an address, align, save."""
    parser = argparse.ArgumentParser(description="VQA-RAD with rejected answers from a CSV file.")
    parser.add_argument("--csv", default=CSV, help="file or address; its column `rejected`: training rows, then test")
    parser.add_argument("--output", default=OUTPUT, help="folder for `datasets.load_from_disk`")
    parser.add_argument("--dataset", default="flaviagiammarino/vqa-rad", help="name on the hub, or a saved folder")
    parser.add_argument("--grey", action="store_true", help="turn images to grey-scale")
    given = parser.parse_args()
    if not given.csv:
        raise UniDPOError("name the file or address of the rejected answers: --csv, or CSV at the top of this script")
    process(given.csv, given.dataset, Path(given.output), grey=given.grey)


def process(csv: str, dataset: str, output: Path, *, grey: bool) -> None:
    """Write the pairs of `dataset` and `csv` to `output`."""
    check_new(output)
    csv_path = Path(csv)
    if "://" in csv:
        csv_path = output.with_name(f"{output.name}.csv")
        download_file(csv, csv_path)
    loaded = load_splits(dataset)
    pairs = load_and_process_vqa_dpo(csv_path, loaded["train"].to_pandas(), loaded["test"].to_pandas(), grey=grey)
    save_dataset(pairs, output)
    print(f"{output}: {len(pairs['train'])} training and {len(pairs['test'])} test pairs")


if __name__ == "__main__":
    run(main)
