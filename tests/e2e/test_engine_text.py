"""The recipes for text and mathematics, from the lines of docs/math_and_text.md to pairs that training accepts."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from uni_dpo.data.checks.preflight import preflight

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory with a solver that is often right, and raters that learnt next to nothing."""
    folder = tmp_path_factory.mktemp("engine_text")
    (folder / "examples").symlink_to(ROOT / "examples")
    script = "examples/engine/prepare_tiny_math.py"
    steps = ("--solver-steps", "130", "--rater-steps", "3", "--problems", "24")
    subprocess.run([sys.executable, script, "outputs/engine_tiny_math", *steps], cwd=folder, check=True)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", [pytest.param("text_reward_model", marks=pytest.mark.nightly), "math"])
def test_recipes_on_tiny_models(folder, name):
    command = [str(Path(sys.executable).with_name("uni-dpo")), "engine", "run", f"examples/engine/{name}_tiny.yaml"]
    work = Path("outputs") / name
    done = subprocess.run([*command, "--work-dir", str(work)], cwd=folder, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == str(work / "dataset" / "pairs.json")
    work = folder / work
    pairs = json.loads((work / "dataset" / "pairs.json").read_text())
    assert len({pair["question_id"] for pair in pairs}) == len(pairs) > 10
    check_scores(pairs, work, name)
    if name == "math":
        check_outcomes(pairs)
        train_as_shown(folder, work)
    (dataset,) = json.loads((work / "dataset" / "dataset_info.json").read_text())
    assert preflight([dataset], work / "dataset").scored == len(pairs)


def train_as_shown(folder, work):
    """One step by the page's own line, on these pairs."""
    page = (ROOT / "docs" / "math_and_text.md").read_text(encoding="utf-8").replace("\\\n", " ")
    (line,) = re.findall(r"^CUDA_VISIBLE_DEVICES= uni-dpo (train .*)$", page, re.MULTILINE)
    changed = [f"dataset_dir={work / 'dataset'}", "max_steps=1", "plot_loss=false"]
    program = str(Path(sys.executable).with_name("uni-dpo"))
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    subprocess.run([program, *shlex.split(line), *changed], cwd=folder, env=environment, check=True)
    (step, _) = json.loads((folder / "saves" / "sums" / "trainer_state.json").read_text())["log_history"]
    assert step["uni_dpo/score_margin"] > 0


def check_scores(pairs, work, name):
    """Every pair carries its answers' own scores, and the reward model's the highest and the lowest."""
    rows = [json.loads(line) for line in (work / "1-reward.jsonl").read_text().splitlines()]
    scores = {row["id"]: {answer["text"]: answer["score"] for answer in row["answers"]} for row in rows if "id" in row}
    for pair in pairs:
        own = scores[pair["question_id"]]
        carried = pair["score_chosen"], pair["score_rejected"]
        assert carried == (own[pair["chosen"]], own[pair["rejected"]])
        assert carried[0] > carried[1]
        if name == "text_reward_model":
            assert carried == (max(own.values()), min(own.values()))


def check_outcomes(pairs):
    """Boxed results of chosen answers are right, of rejected ones wrong; most answers have their box."""
    told = 0
    for pair in pairs:
        total = sum(int(number) for number in re.findall(r"\d+", pair["instruction"]))
        chosen, rejected = (re.findall(r"\\boxed\{(\d+)\}", pair[side])[-1:] for side in ("chosen", "rejected"))
        assert chosen in ([str(total)], [])
        assert rejected != [str(total)]
        told += chosen != []
    assert told > len(pairs) / 2
