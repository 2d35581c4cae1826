"""How often the pairs of `scenes.yaml` prefer the better description: the truth about each picture is known.

python examples/align/count_better.py outputs/scenes/align [further work dirs]
"""

import argparse
import json
from pathlib import Path

from uni_dpo.cli import run
from uni_dpo.data.questions import Question
from uni_dpo.demo.scenes import right_claims
from uni_dpo.errors import UniDPOError


def count_better(work: Path, questions: Path) -> tuple[int, float, float]:
    """Pairs of the first round, and the shares whose chosen answer has more of its claims right, and fewer.

    Raises:
        UniDPOError: there are no pairs.
    """
    path = work / "round-1" / "engine" / "dataset" / "pairs.json"
    if not path.is_file():
        raise UniDPOError(f"{path}: there are no pairs; run align first")
    rows = map(json.loads, questions.read_text(encoding="utf-8").splitlines())
    truths = {row["id"]: Question(row["id"], row["question"], reference=row["answer"]) for row in rows}
    gaps = [
        right_claims(pair["chosen"], truth) - right_claims(pair["rejected"], truth)
        for pair in json.loads(path.read_text(encoding="utf-8"))
        for truth in [truths[pair["question_id"]]]
    ]
    return len(gaps), sum(gap > 0 for gap in gaps) / len(gaps), sum(gap < 0 for gap in gaps) / len(gaps)


def main(works: list[Path], questions: Path) -> None:
    """Print a line for each work dir."""
    for work in works:
        pairs, better, worse = count_better(work, questions)
        print(f"{work.name}: {pairs} pairs; the chosen answer is better in {better:.0%} and worse in {worse:.0%}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work_dirs", type=Path, nargs="+")
    parser.add_argument("--questions", type=Path, default=Path("outputs/scenes/questions.jsonl"))
    options = parser.parse_args()
    run(lambda: main(options.work_dirs, options.questions))
