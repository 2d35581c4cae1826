"""`uni-dpo align` whose training runs on two machines, which meet by an address and share the work dir."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from uni_dpo.align.config import AlignConfig
from uni_dpo.align.stages import AlignStages
from uni_dpo.align.state import AlignState
from uni_dpo.ledger.reading import read_ledger

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
ONE = "env FORCE_TORCHRUN=1 NPROC_PER_NODE=2 {command}"
TWO = (
    "setsid --wait sh -c 'export NPROC_PER_NODE=1 NNODES=2 MASTER_ADDR=127.0.0.1 MASTER_PORT=<port>; "
    "(NODE_RANK=1 {command} || kill 0) & NODE_RANK=0 {command} || kill 0; wait'"
)


def write(folder: Path, name: str, raw: dict[str, Any], pairs: list[dict[str, Any]]) -> Path:
    """Write a configuration and a work dir in which everything before the training is done."""
    config = AlignConfig(raw | {"work_dir": str(folder / name)})
    stages, state = AlignStages(config), AlignState(config.work)
    for stage in stages:
        if stage.name == "1/train":
            break
        state.begin(stage)
        state.end(stage, 0.0)
    dataset = stages.layout.dataset(1)
    dataset.mkdir(parents=True)
    (dataset / "pairs.json").write_text(json.dumps(pairs))
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected", "images": "images"}
    columns |= {"score_chosen": "score_chosen", "score_rejected": "score_rejected"}
    entry = {"file_name": "pairs.json", "ranking": True, "columns": columns}
    (dataset / "dataset_info.json").write_text(json.dumps({"pairs": entry}))
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(raw | {"work_dir": str(folder / name)}))
    return file


def test_two_machines_train_what_two_processes_of_one_train(tmp_path: Path, tiny_qwen2_vl: Path, digits: dict) -> None:
    shown = digits["preference"][:8]
    rows = [{"id": digit.image.stem, "question": "?", "images": [str(digit.image)], "answer": "1"} for digit in shown]
    (tmp_path / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        {
            "instruction": "<image>Which digit?", "images": [str(digit.image)], "chosen": digit.answer,
            "rejected": "none", "score_chosen": 4.0, "score_rejected": 1.0,
        }
        for digit in shown
    ]  # fmt: skip
    questions = str(tmp_path / "questions.jsonl")
    train = {
        "finetuning_type": "full", "cutoff_len": 128, "learning_rate": 1e-3, "max_steps": 2, "save_strategy": "no",
        "per_device_train_batch_size": 2, "preprocessing_num_workers": 1,
    }  # fmt: skip
    raw = {"model": str(tiny_qwen2_vl), **dict.fromkeys(("questions", "validation", "test"), questions), "train": train}
    raw["engine"] = {"pipeline": "verifiable"}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    for name, launcher in (("one", ONE), ("two", TWO.replace("<port>", port))):
        file = write(tmp_path, name, {**raw, "launcher": {"train": launcher}}, pairs)
        words = [sys.executable, "-m", "uni_dpo.cli", "align", str(file), "--until", "1/train"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    models = [tmp_path / name / "round-1" / "model" for name in ("one", "two")]
    one, two = ((model / "model.safetensors").read_bytes() for model in models)
    assert one == two
    rows, expected = (read_ledger(model).to_pylist() for model in reversed(models))
    assert len(rows) == 8
    assert sorted((row["pair"], row["loss"]) for row in rows) == sorted((r["pair"], r["loss"]) for r in expected)
