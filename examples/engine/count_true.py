"""How often the pairs of a `*_tiny.yaml` run prefer a true description: the image's digit is known.

python examples/engine/count_true.py outputs/divide_and_conquer_tiny [further work dirs]
"""

import argparse
import json
from pathlib import Path

from uni_dpo.cli import run
from uni_dpo.errors import UniDPOError


def count_true(work: Path, questions: Path) -> tuple[int, float, float]:
    """Pairs below `work`, and the shares of their chosen and their rejected answers that are true.

    Raises:
        UniDPOError: there are no pairs.
    """
    path = work / "dataset" / "pairs.json"
    if not path.is_file():
        raise UniDPOError(f"{path}: there are no pairs; run the engine first")
    truths = {}
    for line in questions.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        truths[row["question_id"]] = row["answer"]
    pairs = json.loads(path.read_text(encoding="utf-8"))
    chosen, rejected = (
        sum(pair[side] == truths[pair["question_id"]] for pair in pairs) / len(pairs) for side in ("chosen", "rejected")
    )
    return len(pairs), chosen, rejected


def main(works: list[Path], questions: Path) -> None:
    """Print a line for each work dir."""
    for work in works:
        pairs, chosen, rejected = count_true(work, questions)
        print(f"{work.name}: {pairs} pairs; true are {chosen:.0%} of the chosen and {rejected:.0%} of the rejected")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work_dirs", type=Path, nargs="+")
    parser.add_argument("--questions", type=Path, default=Path("outputs/engine_tiny/questions.jsonl"))
    options = parser.parse_args()
    run(lambda: main(options.work_dirs, options.questions))
