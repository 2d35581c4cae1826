"""Any checkout of LlamaFactory that `UNI_DPO_LLAMAFACTORY` names does, with the overlay, what the release does.

`UNI_DPO_LLAMAFACTORY_PYTHON` names the Python that has what the checkout needs; else it is the one of the tests.
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import uni_dpo

NAMED = os.environ.get("UNI_DPO_LLAMAFACTORY")
if not NAMED:
    pytest.skip("set UNI_DPO_LLAMAFACTORY to the folder of a checkout to try it", allow_module_level=True)
PYTHON = os.environ.get("UNI_DPO_LLAMAFACTORY_PYTHON", sys.executable)
IGNORED = shutil.ignore_patterns(".git", "__pycache__", "uni_dpo")
Log = list[dict[str, Any]]


def environment_of(checkout: Path) -> dict[str, str]:
    """Where the checkout's own check of versions stands."""
    kept = {name: value for name, value in os.environ.items() if name != "DISABLE_VERSION_CHECK"}
    return kept | {"PYTHONPATH": str(checkout / "src"), "OMP_NUM_THREADS": "1"}


def overlay(command: str, checkout: Path) -> str:
    call = [sys.executable, "-c", "from uni_dpo.cli import main; main()", "overlay", command, str(checkout)]
    done = subprocess.run(call, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def tiny_qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written by the checkout's Python: an older transformers does not read what a newer one writes."""
    folder = tmp_path_factory.mktemp("models") / "tiny_qwen2_vl"
    write = f"from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl as write; write({str(folder)!r})"
    source = str(Path(uni_dpo.__file__).parents[1])
    subprocess.run([PYTHON, "-c", write], env=os.environ | {"PYTHONPATH": source}, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the checkout with the overlay in it."""
    place = tmp_path_factory.mktemp("named") / "checkout"
    shutil.copytree(NAMED, place, ignore=IGNORED)
    overlay("apply", place)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def theirs(checkout: Path, config: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., Log]:
    """`theirs(output, **settings)` trains as users of the checkout do, and returns the log."""

    def run(output: str, **settings: Any) -> Log:
        described = config(output_dir=str(tmp_path / output), **settings)
        described = {name: value for name, value in described.items() if value is not None}
        (tmp_path / f"{output}.yaml").write_text(yaml.safe_dump(described))
        environment = environment_of(checkout)
        command = [PYTHON, "-m", "llamafactory.cli", "train", str(tmp_path / f"{output}.yaml")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
        return json.loads((tmp_path / output / "trainer_state.json").read_text())["log_history"]

    return run


def assert_same_steps(one: Log, other: Log) -> None:
    for name in ("loss", "grad_norm", "uni_dpo/w_perf"):
        numbers = [[line[name] for line in log if "loss" in line] for log in (one, other)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3), name


# Said, because with transformers 4.57 the default, which freezes both, does nothing.
ALL = {"freeze_vision_tower": False, "freeze_multi_modal_projector": False}
SETTINGS = {
    "whole model": ALL,
    "packing, which is not for pairs": {**ALL, "packing": True},
    "lora": {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"},
    "streaming": {**ALL, "streaming": True, "max_steps": 3},
    "ordinary": {**ALL, "pair_forward": "ordinary"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=list(SETTINGS))
def test_it_takes_the_steps_of_the_installed_release(
    theirs: Callable[..., Log], train: Callable[..., Log], settings: dict[str, Any]
) -> None:
    if settings.get("finetuning_type") == "lora":  # whose first weights depend on how much was drawn before
        log = theirs("theirs", **settings)
        assert log[0]["rewards/margins"] == 0.0
        assert log[0]["loss"] == pytest.approx(train(**settings)[0]["loss"], rel=1e-3)
        return
    ours = train(**{name: value for name, value in settings.items() if name != "packing"})
    assert_same_steps(theirs("theirs", **settings), ours)


def test_it_resumes_and_ends_with_its_best_checkpoint(theirs: Callable[..., Log], tmp_path: Path) -> None:
    steps = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1, "val_size": 0.25}
    best = {"load_best_model_at_end": True, "metric_for_best_model": "eval_rewards/chosen", "greater_is_better": False}
    whole = theirs("whole", **steps, **best, max_steps=3)
    state = json.loads((tmp_path / "whole" / "trainer_state.json").read_text())
    kept = Path(state["best_model_checkpoint"]) / "model.safetensors"
    assert filecmp.cmp(kept, tmp_path / "whole" / "model.safetensors", shallow=False)
    resumed = theirs("resumed", **steps, max_steps=3, resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert_same_steps(resumed, whole)


def test_its_own_losses_and_its_sft_train(
    theirs: Callable[..., Log], config: Callable[..., Any], pair_data: Any
) -> None:
    assert all("uni_dpo/w_perf" not in line for line in theirs("dpo", pref_loss="sigmoid", max_steps=1))
    rows = json.loads((pair_data.folder / "mixed.json").read_text())
    told = [{"instruction": row["instruction"], "output": row["chosen"], "images": row["images"]} for row in rows]
    columns = {"prompt": "instruction", "response": "output", "images": "images"}
    pair_data.add("told", told, ranking=False, columns=columns)
    ours = [name for name in config() if name.startswith(("uni_dpo", "pref"))]
    assert theirs("sft", stage="sft", dataset="told", max_steps=1, **dict.fromkeys(ours))[0]["loss"] > 0


def test_check_apply_and_revert_leave_it_as_it_was(tmp_path: Path) -> None:
    place = tmp_path / "checkout"
    shutil.copytree(NAMED, place, ignore=IGNORED)
    assert "will be refused here" not in overlay("check", place)
    overlay("apply", place)
    assert overlay("apply", place).endswith("nothing to do\n")
    overlay("revert", place)
    command = ["diff", "-rq", "-x", ".git", "-x", "__pycache__", NAMED, str(place)]
    assert subprocess.run(command, capture_output=True, text=True, check=False).stdout == ""
