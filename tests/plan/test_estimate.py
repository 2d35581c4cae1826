"""`uni-dpo plan` on configurations: parts of memory, the largest batch, steps, and what to change."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from uni_dpo.data.ranking import PairChoice
from uni_dpo.data.register import register_file
from uni_dpo.errors import UniDPOError
from uni_dpo.plan.estimate import Estimate, estimate, memory_of, total_of
from uni_dpo.plan.gpus import GPUS, gpu_named
from uni_dpo.plan.workload import read_run, read_workload
from uni_dpo.settings.reading import read_mapping

ROOT = Path(__file__).parents[2]
GIB = 2**30


@pytest.fixture
def settings(tmp_path: Path) -> dict[str, Any]:
    """Forty questions with four answers to an image of 28 · 28 tokens, on a Qwen2-VL-7B that is known by name."""
    Image.new("RGB", (784, 784)).save(tmp_path / "a.png")
    row = {"instruction": "<image>What?", "answers": ["w " * 200 + str(at) for at in range(4)], "scores": [4, 3, 2, 1]}
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(row | {"images": ["a.png"]}) + "\n" for _ in range(40)))
    register_file("ranked", tmp_path / "r.jsonl", tmp_path)
    return {
        "model_name_or_path": "Qwen/Qwen2-VL-7B-Instruct",
        "stage": "dpo",
        "pref_loss": "uni_dpo",
        "finetuning_type": "full",
        "bf16": True,
        "dataset": "ranked",
        "dataset_dir": str(tmp_path),
        "image_max_pixels": 784 * 784,
        "per_device_train_batch_size": 6,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "group_by_question": True,
    }


def of(settings: dict[str, Any], gpu: str = "h100", gpus: int = 1, **changes: Any) -> Estimate:
    return estimate(settings | changes, gpu_named(gpu), gpus)


def test_the_data_is_counted(settings: dict[str, Any]) -> None:
    work = of(settings).workload
    assert (work.questions, work.pairs, work.answers, work.image) == (40, 240, 4, 28 * 28)
    assert work.prompt > work.image
    assert of(settings, uni_dpo_pairs="ends").workload.pairs == 40
    assert of(settings, max_samples=10).workload.pairs == 60


def test_steps_and_work_follow_from_the_pairs(settings: dict[str, Any]) -> None:
    """240 pairs, 12 a step: 20 steps an epoch; on two GPUs 10, each with half of the hours."""
    one, two = of(settings), of(settings, gpus=2)
    assert (one.steps, two.steps, of(settings, max_steps=7).steps) == (40, 20, 7)
    assert two.flops == pytest.approx(one.flops)
    assert two.hours[1] == pytest.approx(one.hours[1] / 2)
    assert one.hours[0] > one.hours[1] > one.hours[2]
    assert of(settings, pair_forward="ordinary").flops > 5 * one.flops


def test_weights_gradients_and_optimizer_are_arithmetic(settings: dict[str, Any]) -> None:
    """A Qwen2-VL-7B: 8,291,375,616 weights, 675,759,104 of them in the frozen tower."""
    everything, trained = 8_291_375_616, 8_291_375_616 - 675_759_104
    full = of(settings).memory
    assert full["optimizer"] == 8 * trained
    assert full["gradients"] == 4 * trained
    assert full["reference"] == 2 * everything
    assert full["weights"] == pytest.approx(4 * trained + 2 * (everything - trained) + 2 * trained)
    assert of(settings, pure_bf16=True).memory["weights"] == pytest.approx(2 * everything)
    assert of(settings, precompute_ref_log_probs=True).memory["reference"] == 0
    lora = of(settings, finetuning_type="lora").memory
    assert lora["reference"] == 0
    assert lora["weights"] == pytest.approx(2 * everything, rel=0.02)
    assert lora["optimizer"] == 2 * lora["gradients"]


@pytest.mark.parametrize("stage", [2, 3])
def test_zero_shares_what_it_shards(settings: dict[str, Any], tmp_path: Path, stage: int) -> None:
    (tmp_path / "ds.json").write_text(json.dumps({"zero_optimization": {"stage": stage}}))
    one, eight = (of(settings, deepspeed=str(tmp_path / "ds.json"), gpus=gpus).memory for gpus in (1, 8))
    shared = {name for name in ("weights", "reference", "gradients", "optimizer") if eight[name] < one[name] / 4}
    assert shared == {"gradients", "optimizer"} | ({"weights", "reference"} if stage == 3 else set())


def test_the_largest_batch_fits_and_one_more_does_not(settings: dict[str, Any]) -> None:
    lora = settings | {"finetuning_type": "lora"}
    found = of(lora)
    assert found.fits
    run, work = read_run(lora), read_workload(lora, PairChoice())
    for batch, fits in ((found.largest_batch, True), (found.largest_batch + 6, False)):
        assert (total_of(memory_of(run, work, batch, 1)) <= GPUS["h100"].memory * GIB) is fits


def test_what_does_not_fit_says_what_to_change(settings: dict[str, Any]) -> None:
    found = of(settings, "a100-40")
    assert not found.fits
    assert found.largest_batch == 0
    assert found.advice[0].startswith("finetuning_type: lora → ")
    assert found.advice[0].endswith("which fits")
    all_changes = {"finetuning_type": "lora", "optim": "adamw_8bit", "per_device_train_batch_size": 1}
    together = of(settings, "t4", precompute_ref_log_probs=True, **all_changes)
    assert of(settings, "t4").advice[-1].startswith(f"all of these → {together.total / GIB:.1f} GiB")
    assert not of(settings, finetuning_type="lora").advice


@pytest.mark.parametrize(
    ("recipe", "model"),
    [
        ("qwen2_vl", "Qwen/Qwen2-VL-2B-Instruct"),
        ("qwen2_5_vl", "Qwen/Qwen2.5-VL-7B-Instruct"),
        ("qwen3_vl", "x/Qwen3-VL-8B-Instruct"),
    ],
)
def test_the_recipe_of_a_family_is_planned(settings: dict[str, Any], recipe: str, model: str) -> None:
    """On one GPU, and it fits."""
    described = dict(read_mapping(ROOT / "examples" / "uni_dpo" / "families" / f"{recipe}.yaml"))
    data = {name: settings[name] for name in ("dataset", "dataset_dir")}
    found = of(described | data, model_name_or_path=model)
    assert (found.fits, found.steps) == (True, 2)


def test_a_tokenizer_counts_where_there_is_one(settings: dict[str, Any], tiny_qwen2_vl: Path) -> None:
    found = of(settings, model_name_or_path=str(tiny_qwen2_vl))
    assert found.workload.counted
    assert not of(settings).workload.counted


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stage": "sft"}, "a plan knows stage: dpo"),
        ({"dataset": None}, "dataset: none is named"),
        ({"dataset": "none"}, "none"),
        ({"model_name_or_path": "nowhere"}, r"no folder with a config\.json"),
        ({"deepspeed": "none.json"}, "deepspeed: none.json is no DeepSpeed"),
        ({"per_device_train_batch_size": "many"}, "per_device_train_batch_size: 'many' is no number"),
    ],
)
def test_faults_are_one_line(settings: dict[str, Any], changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UniDPOError, match=message):
        of(settings, **changes)
    with pytest.raises(UniDPOError, match="none is called 'h1000'; did you mean"):
        gpu_named("h1000")


def test_the_command_imports_no_torch(settings: dict[str, Any], tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(json.dumps(settings | {"finetuning_type": "lora"}))
    program = (
        "import sys; from typer.testing import CliRunner; from uni_dpo.cli.app import app;"
        f"result = CliRunner().invoke(app, ['plan', {str(config)!r}, 'lora_rank=16', '--gpu', 'h100']);"
        "print(result.output); assert result.exit_code == 0, result.output;"
        "assert not {'torch', 'transformers', 'datasets'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "largest batch per device" in done.stdout
