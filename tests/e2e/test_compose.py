"""A composed LLaVA through every stage, by the command line: projector, SFT, reward model, Uni-DPO, PPO, prediction."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import QUESTION, Digit, answer

BIN = Path(sys.executable).parent


def parts() -> Any:
    """The tiny encoders and text models of the unit test."""
    file = Path(__file__).parents[1] / "models" / "test_compose.py"
    spec = importlib.util.spec_from_file_location("composed_parts", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def uni_dpo(*arguments: object, folder: Path) -> str:
    command = [str(BIN / "uni-dpo"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def write_data(folder: Path, digits: list[Digit]) -> None:
    pairs, captions, questions = [], [], []
    for digit in digits:
        image = [str(digit.image)]
        wrong = answer((digit.label + 3) % 10)
        pairs.append({"instruction": f"<image>{QUESTION}", "chosen": digit.answer, "rejected": wrong, "images": image,
                      "score_chosen": 4.0, "score_rejected": 1.0})  # fmt: skip
        captions.append({"instruction": f"<image>{QUESTION}", "output": digit.answer, "images": image})
        questions.append({"id": digit.image.stem, "question": QUESTION, "answer": digit.answer, "images": image})
    columns = {"prompt": "instruction", "images": "images"}
    info = {
        "captions": {"file_name": "captions.json", "columns": columns | {"response": "output"}},
        "pairs": {
            "file_name": "pairs.json",
            "ranking": True,
            "columns": columns | {"chosen": "chosen", "rejected": "rejected"},
        },
    }
    for name, rows in (("captions", captions), ("pairs", pairs), ("questions", questions), ("dataset_info", info)):
        (folder / f"{name}.json").write_text(json.dumps(rows))


@pytest.mark.slow
@pytest.mark.parametrize(("vision", "language"), [("siglip", "llama")])
def test_every_stage_takes_it(tmp_path: Path, digits: dict[str, list[Digit]], vision: str, language: str) -> None:
    import torch
    from safetensors.torch import load_file

    made = parts()
    eyes = made.write_vision(tmp_path / "vision", vision)
    words = made.write_language(tmp_path / "language", language)
    write_data(tmp_path, digits["preference"][:8])
    said = uni_dpo("compose", "composed", "--vision", eyes, "--language", words, folder=tmp_path)
    assert "4 tokens per image" in said
    common = ["do_train=true", "finetuning_type=full", "template=llava", "dataset_dir=.", "max_steps=2", "use_cpu=true",
              "per_device_train_batch_size=4", "learning_rate=0.001", "report_to=none", "cutoff_len=1024"]  # fmt: skip
    (tmp_path / "empty.yaml").write_text("seed: 1\n")

    def train(stage: str, model: str, output: str, *more: str) -> None:
        named = [f"stage={stage}", f"model_name_or_path={model}", f"output_dir={output}"]
        uni_dpo("train", "empty.yaml", *common, *named, *more, folder=tmp_path)

    frozen = ["freeze_language_model=true", "freeze_multi_modal_projector=false", "dataset=captions"]
    train("sft", "composed", "projector", *frozen)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("composed", "projector"))
    moved = {name for name, weight in after.items() if not torch.equal(weight, before[name])}
    assert moved
    assert all("projector" in name for name in moved)

    train("sft", "projector", "sft", "dataset=captions")
    train("rm", "sft", "reward", "dataset=pairs")
    train("dpo", "sft", "aligned", "dataset=pairs", "pref_loss=uni_dpo")
    uni_dpo("score", "pairs.json", "scored.json", "--model", "reward", folder=tmp_path)
    settings = {"model": "sft", "output_dir": "ppo", "questions": {"path": "questions.json"}}
    settings |= {"reward": {"model": "reward"}, "max_tokens": 4, "steps": 1, "rollout_batch_size": 4}
    settings |= {"mini_batch_size": 4, "ppo_epochs": 1, "lora_rank": 4}
    (tmp_path / "ppo.yaml").write_text(json.dumps(settings))
    uni_dpo("ppo", "ppo.yaml", folder=tmp_path)
    options = ["--model", "aligned", "--max-tokens", "4", "--limit", "4"]
    uni_dpo("predict", "questions.json", "answers.json", *options, folder=tmp_path)
    assert len(json.loads((tmp_path / "answers.json").read_text())) == 4
