"""`accelerate launch` of whole online runs on two processes, as the page says it for GPUs, here on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from uni_dpo.demo.digits import QUESTION, Digit

SETTINGS: dict[str, dict[str, Any]] = {
    "ppo": {"steps": 2, "rollout_batch_size": 4, "mini_batch_size": 4, "ppo_epochs": 2, "max_tokens": 4},
    "grpo": {
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "num_generations": 4,
        "num_iterations": 2,
        "max_completion_length": 4,
        "logging_steps": 1,
        "save_strategy": "no",
        "beta": 0.04,
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("stage", [pytest.param("ppo", marks=pytest.mark.nightly), "grpo"])
def test_two_processes_make_one_run(
    stage: str, tiny_qwen2_vl: Path, digits: dict[str, list[Digit]], tmp_path: Path
) -> None:
    rows = [
        {"id": digit.image.stem, "question": QUESTION, "images": [str(digit.image)], "answer": digit.answer}
        for digit in digits["preference"][:16]
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "rewarding.py").write_text("def length(answer, question):\n    return len(answer) / 10\n")
    shared = {
        "model": str(tiny_qwen2_vl),
        "output_dir": "out",
        "questions": {"path": "questions.jsonl"},
        "reward": {"function": "rewarding:length"},
        "lora_rank": 4,
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(shared | SETTINGS[stage]))
    programs = Path(sys.executable).parent
    # --cpu would start one process: without MPI, accelerate only starts several as it does for GPUs.
    launch = [str(programs / "accelerate"), "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    done = subprocess.run(
        [*launch, str(programs / "uni-dpo"), stage, "run.yaml"],
        cwd=tmp_path,
        env=os.environ
        | {
            "OMP_NUM_THREADS": "1",
            "ACCELERATE_USE_CPU": "true",
            "CUDA_VISIBLE_DEVICES": "",
            "PYTHONPATH": str(tmp_path),
        },
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout.count("reward: ") == 1
    assert (tmp_path / "out" / "adapter_model.safetensors").is_file()
    if stage == "ppo":
        log = [json.loads(line) for line in (tmp_path / "out" / "ppo_log.jsonl").read_text().splitlines()]
        assert [line["step"] for line in log] == [0, 1]
    else:
        log = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
        # An epoch asks 16 questions 4 times and learns from the answers twice; two processes share 8 a step.
        assert log[1]["epoch"] == pytest.approx(2 / (16 * 4 * 2 / 8))
    assert log[0]["reward"] > 0
