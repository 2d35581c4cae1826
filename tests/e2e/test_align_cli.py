"""`uni-dpo align` from questions to a chosen model: killed at any moment, with a judge that goes away, from nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow
PATIENCE = 900.0
"""Seconds that a test waits for something that has to happen, on a machine with much else to do."""


@pytest.fixture
def raw(tmp_path: Path, tiny_qwen2_vl: Path, digits: dict, chat_server: Any) -> dict[str, Any]:
    """Two rounds of the tiny model under a judge that grades by the words, over HTTP."""
    files = {}
    for name, split, count in (
        ("questions", "preference", 10),
        ("validation", "validation", 6),
        ("test", "held_out", 6),
    ):
        rows = [
            {"id": digit.image.stem, "question": "Which digit?", "images": [str(digit.image)]}
            for digit in digits[split][:count]
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = str(path)
    judge = {"backend": "openai", "model": "m", "base_url": chat_server().url, "max_retries": 1, "backoff": 0.1}
    return {
        "model": str(tiny_qwen2_vl),
        **files,
        "rounds": 2,
        "go_on": "always",
        "reference": "base",
        "engine": {
            "pipeline": "judge",
            "models": {"judge": judge},
            "sample": {"n": 4, "max_tokens": 6},
            "pairs": {"min_gap": 1.0, "allow_cut_answers": True},
            "batch_size": 2,
            "max_failed_share": 0.5,
        },
        "calibrate": {"low": 0, "high": 5},
        "train": {
            "finetuning_type": "full",
            "cutoff_len": 128,
            "learning_rate": 1e-3,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "preprocessing_num_workers": 1,
        },
        "evaluate": {"by": "score", "max_tokens": 6},
    }


def write(raw: dict[str, Any], folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**raw, "work_dir": str(folder / name)}))
    return path


def start(*words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "uni_dpo.cli", "align", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)


def run(*words: str | Path) -> str:
    process = start(*words)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, printed
    return printed


def stages(work: Path) -> dict[str, Any]:
    file = work / "state.json"
    return dict(json.loads(file.read_text())["stages"]) if file.is_file() else {}


def wait_for(work: Path, stage: str, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while stage not in stages(work) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def left(work: Path) -> dict[str, Any]:
    """What a run is judged by: the weights, the pairs and the summary, without the name of the work dir."""
    files = [*work.glob("round-*/model/**/model.safetensors"), *work.glob("round-*/engine/dataset/calibrated.json")]
    found: dict[str, Any] = {str(path.relative_to(work)): path.read_bytes() for path in sorted(files)}
    return found | {"summary": (work / "summary.json").read_text().replace(str(work), "WORK")}


def test_killed_at_random_it_ends_with_the_same_models_and_results(raw: dict[str, Any], tmp_path: Path) -> None:
    calm, killed = write(raw, tmp_path, "calm"), write(raw, tmp_path, "killed")
    printed = run(calm)
    assert "| round 2 |" in printed
    moments = random.Random(0)
    stops = ["test", "1/sample", "1/score", "1/train", "1/train", "1/validate", "2/score", "2/train"]
    for stage in stops:
        process = start(killed)
        wait_for(tmp_path / "killed", stage, process)
        time.sleep(moments.uniform(0.0, 12.0))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    run(killed)
    assert left(tmp_path / "killed") == left(tmp_path / "calm")
    again = run(killed)
    assert again.count(" s  ") == 0  # nothing was left to do
    process = start(killed, "train.learning_rate=1e-4")
    said, _ = process.communicate()
    assert process.returncode == 1
    assert "1/train: learning_rate was 0.001, is 0.0001" in said
    assert "--from 1/train" in said


def test_a_judge_that_goes_away_is_waited_for(raw: dict[str, Any], tmp_path: Path, chat_server: Any) -> None:
    calm = write(raw | {"rounds": 1}, tmp_path, "calm")
    run(calm, "--until", "1/pair")
    gone = {"until": 0.0}
    asked: list[float] = []

    def fault(body: dict[str, Any], attempt: int) -> int | None:
        asked.append(time.monotonic())
        if len(asked) == 30:
            gone["until"] = time.monotonic() + 5.0
        return 503 if time.monotonic() < gone["until"] else None

    flaky = {**raw, "rounds": 1, "attempts": 20, "pause": 1.0}
    judge = flaky["engine"]["models"]["judge"] | {"base_url": chat_server(fault=fault).url}
    flaky["engine"] = flaky["engine"] | {"models": {"judge": judge}}
    printed = run(write(flaky, tmp_path, "flaky"), "--until", "1/pair")
    assert "trying again in 1 s" in printed
    pairs = [(tmp_path / name / "round-1/engine/dataset/pairs.json").read_text() for name in ("calm", "flaky")]
    assert pairs[0] == pairs[1]


def test_from_an_empty_folder_to_the_end_in_four_commands(
    tmp_path: Path, tiny_qwen2_vl: Path, digits: dict, chat_server: Any
) -> None:
    """Sixty questions with images, the tiny model, and a judge over HTTP."""
    mine = tmp_path / "mine"
    (mine / "images").mkdir(parents=True)
    rows = []
    for digit in digits["preference"][:60]:
        (mine / "images" / digit.image.name).write_bytes(digit.image.read_bytes())
        rows.append({"id": digit.image.stem, "image": f"images/{digit.image.name}", "question": "Which digit?"})
    (mine / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(*words: str) -> str:
        line = [sys.executable, "-m", "uni_dpo.cli", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command("init", "mine", "--model", str(tiny_qwen2_vl), "--judge", chat_server().url)
    assert "FAULT" not in command("doctor", "mine/align.yaml")
    small = (
        "rounds=1", "engine.sample.max_tokens=6", "engine.pairs.allow_cut_answers=true", "evaluate.max_tokens=6",
        "engine.max_failed_share=0.5", "train.num_train_epochs=1",
    )  # fmt: skip
    assert "36 questions × 8 answers" in command("align", "mine/align.yaml", *small, "--plan")
    printed = command("align", "mine/align.yaml", *small)
    assert "# Before and after" in printed
    summary = json.loads((mine / "outputs" / "summary.json").read_text())
    assert summary["rounds"][0]["pairs"] > 0
    assert summary["test"][0]["model"] == "before"
    assert len({len(path.read_text().splitlines()) for path in (mine / "outputs/questions").glob("[tv]*.jsonl")}) == 2
