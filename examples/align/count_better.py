"""How often judges prefer the better description: the truth about each picture is known.

python examples/align/count_better.py outputs/scenes/align [further work dirs]
"""

import argparse
import json
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from statistics import mean
from typing import Any

from uni_dpo.cli import run
from uni_dpo.data.questions import Question
from uni_dpo.demo.scene_judges import parts
from uni_dpo.demo.scenes import right_claims
from uni_dpo.errors import UniDPOError
from uni_dpo.storage.rowlog import log_lines

Truths = dict[str, Question]


@dataclass(frozen=True)
class Verdicts:
    """What a judge made of a round's answers.

    Attributes:
        pairs: that were made.
        better, worse: shares of them whose chosen answer has more of its claims right than the rejected one, and fewer.
        named: shapes that a chosen answer names, and a rejected one, on average.
        ordered: share of all two answers to a question of which the better one has the higher score; equal scores count
            half.
        auc: how probable it is that a true claim has a higher P(yes) than a false one, equal ones counted half; None
            where no claims were checked.
    """

    pairs: int
    better: float
    worse: float
    named: tuple[float, float]
    ordered: float
    auc: float | None

    def __str__(self) -> str:
        said = f"{self.pairs} pairs; the chosen answer is better in {self.better:.0%} and worse in {self.worse:.0%}; "
        said += "it names {:.1f} shapes, the rejected one {:.1f}; ".format(*self.named)
        said += f"of two answers the better one has the higher score in {self.ordered:.0%}"
        return said if self.auc is None else f"{said}; AUC of single claims {self.auc:.2f}"


def verdicts(work: Path, truths: Truths) -> Verdicts:
    """Count the pairs and scores of the first round.

    Raises:
        UniDPOError: there are no pairs.
    """
    folder = work / "round-1" / "engine"
    path = folder / "dataset" / "pairs.json"
    if not path.is_file():
        raise UniDPOError(f"{path}: there are no pairs; run align first")
    pairs = json.loads(path.read_text(encoding="utf-8"))
    gaps = [
        right_claims(pair["chosen"], truth) - right_claims(pair["rejected"], truth)
        for pair in pairs
        for truth in [truths[pair["question_id"]]]
    ]
    chosen, rejected = (mean(map(shapes, (pair[side] for pair in pairs))) for side in ("chosen", "rejected"))
    scored = [row for row, _ in log_lines(folder / "1-reward.jsonl") if row is not None and row.get("answers")]
    better, worse = (sum(sign * gap > 0 for gap in gaps) / len(gaps) for sign in (1, -1))
    return Verdicts(len(gaps), better, worse, (chosen, rejected), ordered(scored, truths), auc(scored, truths))


def shapes(description: str) -> int:
    """Count the sentences of a colour, a shape and its place."""
    return sum(len(sentence.split()) == 4 for sentence in description.split("."))


def ordered(rows: Sequence[dict[str, Any]], truths: Truths) -> float:
    """Give the share of all two answers to one question, one of them better, that the scores order rightly."""
    right = []
    for row in rows:
        graded = [(right_claims(one["text"], truths[row["id"]]), one["score"]) for one in row["answers"]]
        for (grade, score), (other, low) in combinations(sorted(graded, reverse=True), 2):
            right += [(score > low) + 0.5 * (score == low)] if grade > other else []
    return sum(right) / len(right)


def auc(rows: Sequence[dict[str, Any]], truths: Truths) -> float | None:
    """Give the area under the ROC curve of P(yes), each claim about each picture once; None where there are none."""
    found = {
        (row["id"], claim["claim"]): claim["p_yes"]
        for row in rows
        for one in row["answers"]
        for claim in one["detail"].get("claims", ())
    }
    true, false = (
        sorted(p_yes for (key, claim), p_yes in found.items() if (claim in parts(str(truths[key].reference))) == wanted)
        for wanted in (True, False)
    )
    above = sum(bisect_left(false, p_yes) + bisect_right(false, p_yes) for p_yes in true) / 2
    return above / (len(true) * len(false)) if true and false else None


def main(works: list[Path], questions: Path) -> None:
    """Print a line for each work dir."""
    rows = map(json.loads, questions.read_text(encoding="utf-8").splitlines())
    truths = {row["id"]: Question(row["id"], row["question"], reference=row["answer"]) for row in rows}
    for work in works:
        print(f"{work.name}: {verdicts(work, truths)}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("work_dirs", type=Path, nargs="+")
    parser.add_argument("--questions", type=Path, default=Path("outputs/scenes/questions.jsonl"))
    options = parser.parse_args()
    run(lambda: main(options.work_dirs, options.questions))
