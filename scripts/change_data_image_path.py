"""Point the image paths of a dataset to the folder that holds MM-RLHF's images on this machine.

    python scripts/change_data_image_path.py --input_file data/pairs.json --image_dir /data/MM-RLHF

Runs in this repository and in a LlamaFactory checkout over which `src` and `scripts` were copied.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from uni_dpo.cli import run
from uni_dpo.data.image_paths import rebase_images


def main() -> None:
    """Parse, rebase, print the counts."""
    parser = argparse.ArgumentParser(description="Rewrite what comes before and with MM-RLHF in image paths.")
    parser.add_argument("--input_file", required=True, help="dataset: .json, .jsonl or .parquet, of any size")
    parser.add_argument("--image_dir", required=True, help="the MM-RLHF folder on this machine")
    parser.add_argument("--output_file", help="where to write; without it the input is overwritten, a copy is kept")
    parser.add_argument("--check", action="store_true", help="count only, write nothing")
    given = parser.parse_args()
    result = rebase_images(given.input_file, [given.image_dir], output_file=given.output_file, check=given.check)
    print("\n".join(result.lines()))


if __name__ == "__main__":
    run(main)
