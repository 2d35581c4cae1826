"""What Uni-DPO gains over other ways of learning from the same scored pairs, on an embedded task.

    python benchmarks/gain.py run FOLDER [--task scenes] [--seeds 0 1 2 3 4] [--minutes M]    run what is not there yet
    python benchmarks/gain.py table FOLDER|ROWS                                print the tables of what has run

Started twice on one folder it shares the work. Each method has six settings, tried on a seed of its own with clean
scores; the best on the validation images is taken. Then each method runs with these on every other seed and every kind
of scores. The test images, the same for all, are asked about in those last runs only. A seed decides the model's
weights, its warm-up, its answers, its pairs and the order of training.
"""

import argparse
import os
import random
import shutil
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from demo_training import COLUMNS, DIGITS, SCENES, Pictures, Task, make_pairs, rightness, train, warm_up, write_data
from gain_table import ALIKE, START, TWICE, TWO_ROUNDS, UNI_DPO, best_settings, print_tables
from rich.console import Console

from uni_dpo.errors import UniDPOError
from uni_dpo.storage.identity import digest
from uni_dpo.storage.rowlog import Row, RowLog, log_lines
from uni_dpo.storage.writing import holding

SEARCH_SEED = 100
HOUR = 3600.0
PAIRS = 480
STEPS = 60
"""Of 16 pairs, or of 16 answers for SFT: twice through the pairs."""
NOISE = 1.5
"""Standard deviation of the noise of each score, on a scale of 0 to 5."""
SWAPPED = 0.15
"""The share of pairs whose judge was sure and wrong."""
CONDITIONS = ("clean", "noisy scores", "15 % swapped")
SHARED: dict[str, Any] = {
    "max_steps": STEPS, "per_device_train_batch_size": 16, "logging_steps": 30, "disable_gradient_checkpointing": True,
}  # fmt: skip
PREFERENCE: dict[str, Any] = {"stage": "dpo", "pair_forward": "shared_prefix", "uni_dpo_ledger": False}


@dataclass(frozen=True)
class Plan:
    """What is compared on one task.

    Attributes:
        good: τ_good; SFT learns from the chosen answers that are this good. None for the middle chosen score of the
            pairs in hand, where an answer can be half right and each seed's model is another way along.
        low, high: learning rates; lower ones for what has no term that holds up the likelihood of the chosen answers.
    """

    task: Task
    good: float | None
    low: Sequence[float]
    high: Sequence[float]

    @property
    def methods(self) -> Mapping[str, list[dict[str, Any]]]:
        """Method → the settings that are tried. β of Uni-DPO is 2, on averages over an answer's tokens."""
        nll = {"pref_loss": "uni_dpo"}, self.high, "uni_dpo_nll_lambda", (0.2, 1.0)
        return {
            "SFT more": [{"learning_rate": rate} for rate in (3e-5, 1e-4, 3e-4, 1e-3, 2e-3, 3e-3)],
            "DPO": grid({"pref_loss": "sigmoid"}, self.low, "pref_beta", (0.1, 0.5)),
            "DPO + SFT term": grid({"pref_loss": "sigmoid", "pref_beta": 0.5}, self.high, "pref_ftx", (0.3, 1.0)),
            "SimPO": grid({"pref_loss": "simpo"}, self.low, "pref_beta", (0.5, 2.0)),
            UNI_DPO: grid(*nll),
            "… without quality": grid(*nll, uni_dpo_qual_eta=0.0),
            "… without performance": grid(*nll, uni_dpo_perf_gamma=0.0),
            "… without NLL": grid(
                {"pref_loss": "uni_dpo", "uni_dpo_nll_lambda": 0.0}, self.low, "pref_beta", (0.5, 2.0)
            ),
        }


def grid(
    fixed: Mapping[str, Any], rates: Sequence[float], knob: str, values: Sequence[float], **further: Any
) -> list[dict[str, Any]]:
    """Six settings: three learning rates by two values."""
    return [{**fixed, **further, "learning_rate": rate, knob: value} for rate in rates for value in values]


PLANS = {
    plan.task.name: plan
    for plan in (
        Plan(DIGITS, good=2.5, low=(3e-5, 1e-4, 3e-4), high=(3e-4, 1e-3, 2e-3)),
        Plan(SCENES, good=None, low=(1e-5, 3e-5, 1e-4), high=(1e-4, 3e-4, 1e-3)),
    )
}


def spoiled(pairs: Sequence[Row], condition: str, seed: int) -> list[Row]:
    """Return the pairs as a worse judge would have made them.

    With noisy scores each score is off by normal noise and the answer with the higher one is chosen; of swapped pairs a
    share has its answers exchanged, while the scores stay where they are.
    """
    draw = random.Random(seed)
    rows = [dict(row) for row in pairs]
    if condition == "noisy scores":
        for row in rows:
            for score in ("score_chosen", "score_rejected"):
                row[score] = round(row[score] + draw.gauss(0.0, NOISE), 2)
            if row["score_chosen"] < row["score_rejected"]:
                _exchange(row, "chosen", "rejected")
                _exchange(row, "score_chosen", "score_rejected")
    elif condition == "15 % swapped":
        for at in draw.sample(range(len(rows)), round(SWAPPED * len(rows))):
            _exchange(rows[at], "chosen", "rejected")
    return rows


def _exchange(row: Row, one: str, other: str) -> None:
    row[one], row[other] = row[other], row[one]


@dataclass(frozen=True)
class Job:
    """One training and one look at images: of the search where there is no condition."""

    seed: int
    method: str
    settings: Mapping[str, Any]
    condition: str = ""

    @property
    def key(self) -> str:
        """What its row is known by."""
        return "/".join((str(self.seed), self.condition or "search", self.method, words(self.settings)))


class World:
    """All that the methods share under one seed: the warmed-up model and its scored pairs."""

    def __init__(self, folder: Path, plan: Plan, pictures: Mapping[str, Pictures], seed: int) -> None:
        self.folder, self.seed = folder / f"seed_{seed}", seed
        self.plan, self.task, self.pictures = plan, plan.task, pictures
        self.own = self.folder / str(os.getpid())
        with holding(self.folder / "lock", what=str(self.folder), patience=HOUR):
            self.start = warm_up(self.folder / "warm_up", pictures["train"], task=self.task, seed=seed)
            self.pairs = self.pairs_of(self.start, self.folder / "pairs")

    def pairs_of(self, model: Path, folder: Path, count: int = PAIRS) -> list[Row]:
        """Sample, score and pair; return so many of the pairs, drawn by the seed."""
        rows = make_pairs(model, folder, self.pictures["preference"], task=self.task, seed=self.seed)
        return random.Random(self.seed).sample(rows, min(count, len(rows)))

    def train(self, settings: Mapping[str, Any], pairs: Sequence[Row], start: Path, name: str = "model") -> Path:
        """Train from `start` on the pairs; return the model."""
        rows, entry = list(pairs), {"ranking": True, "columns": COLUMNS}
        good = self.plan.good or statistics.median(row["score_chosen"] for row in rows)
        stage = PREFERENCE | {"uni_dpo_tau_good": good}
        if "pref_loss" not in settings:
            rows = [row for row in rows if row["score_chosen"] >= good]
            columns = {"prompt": "instruction", "response": "chosen", "images": "images"}
            entry, stage = {"columns": columns}, {"stage": "sft"}
        write_data(self.own / "data", rows, entry)
        where = {
            "model_name_or_path": str(start), "output_dir": str(self.own / name), "seed": self.seed,
            "dataset_dir": str(self.own / "data"),
        }  # fmt: skip
        return train({**SHARED, **stage, **settings, **where})

    def model(self, job: Job) -> Path:
        """Train as the job says; return the model."""
        if job.method == START:
            return self.start
        if job.method == TWICE:
            pairs = self.pairs_of(self.start, self.folder / "pairs", 2 * PAIRS)
            return self.train({**job.settings, "max_steps": 2 * STEPS}, pairs, self.start)
        model = self.train(job.settings, spoiled(self.pairs, job.condition, self.seed), self.start)
        if job.method != TWO_ROUNDS:
            return model
        return self.train(job.settings, self.pairs_of(model, self.own / "pairs"), model, "second")

    def row(self, job: Job) -> Row:
        """Train as the job says and look at its images: those of validation in the search, else those of the test."""
        begun = time.process_time()
        try:
            asked = self.pictures["held_out" if job.condition else "validation"]
            right = rightness(self.model(job), asked, task=self.task)
        finally:
            shutil.rmtree(self.own, ignore_errors=True)
        row: Row = {"id": job.key, "task": self.task.name, "seed": job.seed, "method": job.method}
        row |= {"settings": words(job.settings), "cpu": round(time.process_time() - begun, 1)}
        if job.condition:
            return row | {"condition": job.condition, "right": kept(right)}
        return row | {"validation": sum(right) / len(right)}


def words(settings: Mapping[str, Any]) -> str:
    """Settings as one text."""
    return " ".join(f"{name}={value}" for name, value in settings.items())


def kept(right: Sequence[float]) -> str | list[float]:
    """What a row holds of the test: a 1 or a 0 for each question, or thousandths where an answer can be half right."""
    if set(right) <= {0.0, 1.0}:
        return "".join(str(int(one)) for one in right)
    return [round(one, 3) for one in right]


def searches(plan: Plan) -> list[Job]:
    """Every setting of every method."""
    return [Job(SEARCH_SEED, method, settings) for method, tried in plan.methods.items() for settings in tried]


def runs(plan: Plan, seeds: Sequence[int], rows: Iterable[Row]) -> list[Job]:
    """Every seed, kind of scores and method, with the settings that the search chose: clean first, more rounds last."""
    chosen = best_settings(rows)
    settings = {
        method: next(each for each in tried if words(each) == chosen[method][0])
        for method, tried in plan.methods.items()
    }
    jobs = []
    for conditions in (CONDITIONS[:1], CONDITIONS[1:]):
        for seed in seeds:
            jobs += [Job(seed, START, {}, "clean")] if "clean" in conditions else []
            jobs += [Job(seed, method, settings[method], name) for name in conditions for method in settings]
    jobs += [Job(seed, method, settings[UNI_DPO], "clean") for method in (TWICE, TWO_ROUNDS) for seed in seeds]
    alike = {**settings[UNI_DPO], "uni_dpo_qual_eta": 0.0}
    if alike != settings["… without quality"]:  # then the weight is not all that differs
        jobs += [Job(seed, ALIKE, alike, name) for name in CONDITIONS for seed in seeds]
    return jobs


class Bench:
    """A folder in which any number of processes do jobs, each of them once."""

    def __init__(self, folder: Path, plan: Plan, minutes: float) -> None:
        self.folder, self.plan, self.ends = folder, plan, time.monotonic() + 60 * minutes
        with holding(folder / "lock", what=str(folder), patience=HOUR):
            self.pictures = plan.task.pictures(folder / "images")
        self.world: World | None = None

    def rows(self) -> dict[str, Row]:
        """What has been done, by any process."""
        with holding(self.folder / "lock", what=str(self.folder), patience=HOUR):
            return RowLog(self.folder / "rows.jsonl").rows

    def do(self, jobs: Sequence[Job]) -> None:
        """Do what nobody does; then wait for what others do, and do it where they ended before it was done."""
        for patience in (0.0, HOUR):
            for job in jobs:
                if job.key in self.rows():
                    continue
                if time.monotonic() > self.ends:
                    return
                with ExitStack() as claims:
                    try:
                        claim = self.folder / "claims" / digest(job.key)
                        claims.enter_context(holding(claim, what=job.key, patience=patience))
                    except UniDPOError:
                        continue  # another process is at it
                    self._do(job)

    def _do(self, job: Job) -> None:
        if job.key in self.rows():
            return
        if self.world is None or self.world.seed != job.seed:
            self.world = World(self.folder, self.plan, self.pictures, job.seed)
        row = self.world.row(job)
        with holding(self.folder / "lock", what=str(self.folder), patience=HOUR):
            RowLog(self.folder / "rows.jsonl").append([row])


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["run", "table"])
    parser.add_argument("folder", type=Path, help="for table also a file of rows, such as benchmarks/gain_rows.jsonl")
    parser.add_argument("--task", choices=PLANS, default=DIGITS.name)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin nothing after so many minutes")
    options = parser.parse_args()
    if options.what == "run":
        torch.set_num_threads(1)
        plan = PLANS[options.task]
        bench, search = Bench(options.folder.resolve() / options.task, plan, options.minutes), searches(plan)
        bench.do(search)
        rows = bench.rows()
        if all(job.key in rows for job in search):  # or the minutes are over
            bench.do(runs(plan, options.seeds, rows.values()))
    logs = [options.folder] if options.folder.is_file() else sorted(options.folder.glob("*/rows.jsonl"))
    if not logs:
        raise SystemExit(f"{options.folder}: nothing has run here yet")
    for log in logs:
        print_tables([row for row, _ in log_lines(log) if row is not None], Console(width=150))


if __name__ == "__main__":
    main()
