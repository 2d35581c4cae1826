"""`uni-dpo engine run` on models that were really trained, and its way of refusing."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from uni_dpo.cli import main

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A working directory as the examples expect it, its models trained just enough to keep to their forms."""
    folder = tmp_path_factory.mktemp("engine_cli")
    (folder / "examples").symlink_to(ROOT / "examples")
    spec = importlib.util.spec_from_file_location("prepare_tiny", ROOT / "examples" / "engine" / "prepare_tiny.py")
    prepare_tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare_tiny)
    prepare_tiny.prepare(
        folder / "outputs" / "engine_tiny", describe_steps=90, check_steps=20, write_steps=110, questions=16, good=0.0
    )
    return folder


@pytest.fixture
def engine(folder, monkeypatch, capsys):
    """Run the command line in that directory; returns exit status and what was printed."""

    def run(*arguments):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "argv", ["uni-dpo", "engine", "run", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            if isinstance(end.code, str):
                return 1, end.code
            return end.code or 0, capsys.readouterr().out
        return 0, capsys.readouterr().out

    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", ["verifiable", "dpo_reward", "divide_and_conquer"])
def test_pipelines_on_tiny_models(engine, folder, name):
    spec = yaml.safe_load((folder / "examples" / "engine" / f"{name}_tiny.yaml").read_text())
    spec["models"]["sampler"]["model"] = "outputs/engine_tiny/seer"  # half of so short a training is too little
    spec["pairs"].pop("min_gap", None)
    if name == "divide_and_conquer":
        spec["pairs"]["min_gap"] = 0.0  # so fresh a checker is sure of nothing
    config = folder / f"{name}.yaml"
    config.write_text(yaml.safe_dump(spec), encoding="utf-8")
    work = folder / "outputs" / name
    code, printed = engine(config, "--work-dir", work)
    assert code == 0, printed
    path = work / "dataset" / "pairs.json"
    assert printed.splitlines()[-1] == str(path)
    pairs = json.loads(path.read_text())
    assert pairs
    for pair in pairs:
        assert pair["chosen"] != pair["rejected"]
        assert pair["score_chosen"] > pair["score_rejected"]
        assert Path(pair["images"][0]).is_file()
    registered = json.loads((work / "dataset" / "dataset_info.json").read_text())
    assert list(registered) == [f"digits_{name}"]
    before = path.read_bytes()
    assert engine(config, "--work-dir", work)[0] == 0
    assert path.read_bytes() == before


@pytest.mark.slow
def test_the_published_script_of_rlaif_v_runs_the_same_engine(folder):
    settings = {
        "WORK_DIR": "outputs/rlaif_v",
        "DATASET_PATH": "outputs/engine_tiny/questions.jsonl",
        "PIPELINE_NAME": "dpo_reward_pipeline",
        "INSTRUCT_MODEL_PATH": "outputs/engine_tiny/seer",
        "REWARD_MODEL_PATH": "outputs/engine_tiny/seer,outputs/engine_tiny/seer_early",
    }
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = ["bash", str(ROOT / "scripts" / "run_data_engine.sh"), "--sample_k", "4", "--rank", "2"]
    told = ["--reward_model_python_path", "/opt/python"]
    run = subprocess.run(
        [*script, *told], cwd=folder, env={**os.environ, **settings, "PATH": path}, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert "--reward_model_python_path: of no effect" in run.stdout
    work = folder / "outputs" / "rlaif_v"
    kept = yaml.safe_load((work / "rlaif_v.yaml").read_text())
    assert kept["pairs"] == {"choose": "published", "rank": 2, "max_word_difference": 25}
    assert json.loads((work / "dataset" / "pairs.json").read_text())
    del settings["REWARD_MODEL_PATH"]
    run = subprocess.run(
        script, cwd=folder, env={**os.environ, **settings, "PATH": path}, capture_output=True, text=True
    )
    assert (run.returncode, run.stderr.splitlines()) == (
        1,
        ["error: REWARD_MODEL_PATH is not set: splitter,asker,checker; for dpo_reward aligned,reference"],
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["gone.yaml", "--work-dir", "w"], "gone.yaml: there is no such configuration file"),
        (["bad.yaml", "--work-dir", "w"], "not valid YAML"),
        (["list.yaml", "--work-dir", "w"], "expected `key: value` lines"),
        (["typo.yaml", "--work-dir", "w"], "pairs.min_gpa: unknown setting; did you mean 'min_gap'?"),
        (["nofile.yaml", "--work-dir", "w"], "nofile.jsonl: no such file"),
    ],
)
def test_faults_are_one_line_and_status_1(engine, folder, arguments, message):
    model = "pipeline: verifiable\nmodels: {sampler: {model: m}}\n"
    (folder / "bad.yaml").write_text("a: [")
    (folder / "list.yaml").write_text("- a")
    (folder / "typo.yaml").write_text(model + "pairs: {min_gpa: 1}")
    (folder / "nofile.yaml").write_text(model + "input: {path: nofile.jsonl}")
    code, printed = engine(*arguments)
    assert code == 1
    assert message in printed
    assert not (folder / "w").exists()
