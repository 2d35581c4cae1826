"""A fourth backend, a new grader, a setting of the training: each is one file, made as CONTRIBUTING says."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent

import pytest

import uni_dpo

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8"), re.DOTALL)
QUESTIONS = [
    {"id": "a", "question": "The capital of France is Paris, is it?", "answer": "paris"},
    {"id": "b", "question": "And of Italy?", "answer": "Rome"},
]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A copy of the package that a newcomer may change."""
    shutil.copytree(
        Path(uni_dpo.__file__).parent, tmp_path / "src/uni_dpo", ignore=shutil.ignore_patterns("__pycache__")
    )
    return tmp_path


def written(tree: Path, block: str) -> None:
    """Write the file that a block of CONTRIBUTING names in its first line."""
    place = block.splitlines()[0].removeprefix("# ")
    (tree / place).write_text(block.partition("\n")[2], encoding="utf-8")


def run(tree: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """`uni-dpo WORDS` of the changed package."""
    env = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "uni_dpo.cli", *words]
    return subprocess.run(command, cwd=tree, env=env, capture_output=True, text=True)


def test_a_backend_and_a_grader_are_one_file_each(tree: Path) -> None:
    for block in BLOCKS[:2]:
        written(tree, block)
    (tree / "q.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    done = run(tree, "predict", "q.jsonl", "p.json", "--model", "m", "--backend", "echo", "--grader", "contains")
    assert done.returncode == 0, done.stderr
    rows = json.loads((tree / "p.json").read_text())
    assert [(row["prediction"], row["correct"]) for row in rows] == [
        ("The capital of France is Paris, is it?", 1.0),
        ("And of Italy?", 0.0),
    ]
    (tree / "engine.yaml").write_text(
        "pipeline: verifiable\ninput: {path: q.jsonl}\nreward: {grader: contains}\n"
        "models: {sampler: {backend: echo, model: m, words: 0}}\n"
    )
    engine = ("engine", "run", "engine.yaml", "--work-dir", "w", "--run-stage", "0")
    refused = run(tree, *engine)
    assert refused.stderr == "error: engine.yaml:4: models.sampler.words: 0 is out of range; it can be 1 or more\n"
    refused = run(tree, *engine, "reward.grader=contain", "models.sampler.words=2")
    assert refused.stderr == "error: engine.yaml:3: reward: no grader is called 'contain'; did you mean 'contains'?\n"
    done = run(tree, *engine, "models.sampler.words=2")
    assert done.returncode == 0, done.stderr


def test_a_setting_of_the_training_is_one_field(tree: Path) -> None:
    arguments = tree / "src/uni_dpo/llamafactory/arguments.py"
    text = arguments.read_text(encoding="utf-8")
    field = indent(BLOCKS[2], "    ")
    arguments.write_text(text.replace("    def __post_init__", f"{field}\n    def __post_init__", 1), encoding="utf-8")
    (tree / "c.yaml").write_text("stage: dpo\nuni_dpo_patience: -1\nuni_dpo_patiense: 1\n")
    refused = run(tree, "train", "c.yaml")
    assert refused.stderr.splitlines() == [
        "error: c.yaml:3: uni_dpo_patiense: unknown setting; did you mean 'uni_dpo_patience'?",
        "c.yaml:2: uni_dpo_patience: -1 is out of range; it can be 0 or more",
    ]
    shown = json.loads(run(tree, "schema", "train").stdout)["properties"]["uni_dpo_patience"]
    assert shown == {"type": "number", "minimum": 0, "description": "What the setting does, in one sentence."}
    assert "uni_dpo_patience (default 0.0)" in run(tree, "train", "--help").stdout
    later = (
        "from uni_dpo.llamafactory import register; register()\n"
        "from uni_dpo.llamafactory.arguments import UniDPOFinetuningArguments as Arguments\n"
        "print(Arguments(uni_dpo_patience=2).uni_dpo_patience)\nArguments(uni_dpo_patience=-1)"
    )
    env = os.environ | {"PYTHONPATH": str(tree / "src")}
    done = subprocess.run([sys.executable, "-c", later], env=env, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "2"
    assert "uni_dpo_patience: -1 is out of range; it can be 0 or more" in done.stderr
