"""The recipes: what they pass to LlamaFactory, and that LlamaFactory's own parsers accept it."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
RECIPES = REPOSITORY / "examples/uni_dpo"
OLDEST = REPOSITORY / ".venv-lf094/bin/python"
COMMON = {
    "stage": "dpo",
    "finetuning_type": "full",
    "freeze_vision_tower": "false",
    "dataset": "uni_dpo_image_only_mcq_short_long_50k",
    "template": "qwen2_vl",
    "cutoff_len": "4096",
    "lr_scheduler_type": "cosine",
    "warmup_steps": "0",
    "num_train_epochs": "1",
    "per_device_train_batch_size": "1",
    "bf16": "true",
}
PUBLISHED = {
    "Qwen2_VL_2B_uni_dpo.sh": {
        "pref_loss": "uni_dpo",
        "learning_rate": "6.0e-6",
        "pref_beta": "2.0",
        "uni_dpo_qual_eta": "0.7",
        "uni_dpo_tau_ref": "2.0",
        "uni_dpo_perf_gamma": "3.0",
        "uni_dpo_nll_lambda": "0.001",
        "uni_dpo_tau_good": "2.5",
        "dpo_average_log_prob": "true",
    },
    "Qwen2_VL_2B_dpo.sh": {
        "pref_loss": "sigmoid",
        "learning_rate": "5.0e-7",
        "pref_beta": "0.1",
        "dpo_label_smoothing": "0.1",
    },
    "Qwen2_VL_2B_simpo.sh": {
        "pref_loss": "simpo",
        "learning_rate": "5.0e-7",
        "pref_beta": "2.0",
        "simpo_gamma": "1.0",
    },
}
PARSE = """
import json, sys
from uni_dpo.llamafactory import register
register()
from llamafactory.hparams import get_train_args
from uni_dpo.llamafactory.launch import read_arguments
for arguments in json.load(sys.stdin):
    _, data, training, finetuning, _ = get_train_args(read_arguments(arguments))
    print("parsed", finetuning.pref_loss, training.learning_rate, int(training.warmup_steps), data.dataset[0])
"""


def run(recipe: str, *arguments: str, root: Path = REPOSITORY, **settings: str) -> subprocess.CompletedProcess[str]:
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        ["bash", str(root / "examples/uni_dpo" / recipe), *arguments],
        env={"PATH": path, "HOME": os.environ.get("HOME", "/"), **settings},
        capture_output=True,
        text=True,
    )


def dry_run(recipe: str, *arguments: str, root: Path = REPOSITORY, **settings: str) -> list[str]:
    """The words of the command that the recipe would run."""
    done = run(recipe, *arguments, root=root, DRY_RUN="1", **settings)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def flags(words: list[str]) -> dict[str, str]:
    first = words.index("--stage")
    assert len(words[first:]) % 2 == 0
    return {name.removeprefix("--"): value for name, value in zip(words[first::2], words[first + 1 :: 2], strict=True)}


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a recipe can see of an overlaid checkout, under a name that the shell has to quote."""
    root = tmp_path / "my 'Llama' Factory"
    (root / "examples").mkdir(parents=True)
    (root / "src").mkdir()
    (root / "src/train.py").write_text("import sys\nprint('TRAIN', sys.argv[1:])\nsys.exit(3)\n")
    (root / "examples/uni_dpo").symlink_to(RECIPES)
    return root


@pytest.mark.parametrize("recipe", list(PUBLISHED))
def test_recipes_carry_the_published_hyperparameters(recipe):
    words = dry_run(recipe)
    passed = flags(words)
    expected = {**COMMON, **PUBLISHED[recipe], "gradient_accumulation_steps": "32"}
    assert {name: passed.get(name) for name in expected} == expected
    assert "CUDA_VISIBLE_DEVICES=0,1,2,3" in words
    assert json.loads(Path(passed["deepspeed"]).read_text())["zero_optimization"]["stage"] == 2


@pytest.mark.parametrize("recipe", list(PUBLISHED))
def test_every_setting_of_a_recipe_is_taken_from_the_environment(recipe):
    text = (RECIPES / recipe).read_text() + (RECIPES / "launch.sh").read_text()
    names = set(re.findall(r'^: "\$\{(\w+):?=', text, re.MULTILINE))
    numbers = {"GLOBAL_BATCH_SIZE": "64", "PER_GPU_BATCH_SIZE": "2", "NNODES": "2", "GPU_LIST": "0,3"}
    settings = {name: numbers.get(name, f"my {name}") for name in names - {"DRY_RUN"}}
    words = dry_run(recipe, **settings)
    passed = flags(words)
    assert passed["gradient_accumulation_steps"] == "8"
    assert {"CUDA_VISIBLE_DEVICES=0,3", "NNODES=2"} <= set(words)
    unseen = {name for name, value in settings.items() if not any(value in word for word in words)}
    assert unseen == {"GLOBAL_BATCH_SIZE", "PYTHON"}


@pytest.mark.parametrize(
    ("settings", "accumulation"),
    [
        ({"GPU_LIST": "0"}, "128"),
        ({"GPU_LIST": "0,1,2,3,4,5,6,7"}, "16"),
        ({"GPU_LIST": "0,1", "PER_GPU_BATCH_SIZE": "4"}, "16"),
        ({"GPU_LIST": "0,1,2,3", "NNODES": "4"}, "8"),
        ({"GPU_LIST": ""}, "128"),
        ({"GPU_LIST": "0,1,2", "GLOBAL_BATCH_SIZE": "96"}, "32"),
    ],
)
def test_accumulation_makes_up_the_global_batch(settings, accumulation):
    assert flags(dry_run("Qwen2_VL_2B_uni_dpo.sh", **settings))["gradient_accumulation_steps"] == accumulation


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"GPU_LIST": "0,1,2"}, "GLOBAL_BATCH_SIZE 128 cannot be split evenly"),
        ({"GLOBAL_BATCH_SIZE": "2"}, "GLOBAL_BATCH_SIZE 2 cannot be split evenly"),
        ({"PER_GPU_BATCH_SIZE": "two"}, "PER_GPU_BATCH_SIZE must be a whole number above 0, not 'two'"),
        ({"NNODES": "0"}, "NNODES must be a whole number above 0"),
    ],
)
def test_a_batch_that_cannot_be_split_is_one_line(settings, message, tmp_path):
    done = run("Qwen2_VL_2B_uni_dpo.sh", OUTPUT_DIR=str(tmp_path / "out"), **settings)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {message}")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_this_repository_starts_uni_dpo_train_through_torchrun():
    words = dry_run("Qwen2_VL_2B_uni_dpo.sh", "--max_steps", "3", GPU_LIST="1,2")
    start = words.index("train")
    assert Path(words[start - 1]).name == "uni-dpo"
    assert {"FORCE_TORCHRUN=1", "NPROC_PER_NODE=2"} <= set(words[:start])
    assert words[-2:] == ["--max_steps", "3"]


def test_a_checkout_starts_its_own_train_py(checkout):
    words = dry_run("Qwen2_VL_2B_uni_dpo.sh", root=checkout, GPU_LIST="1,2", NNODES="2", NODE_RANK="1")
    script = words.index(f"{checkout}/src/train.py")
    assert words[2:script] == shlex.split(
        "python -m torch.distributed.run --nnodes 2 --node_rank 1 --nproc_per_node 2 "
        "--master_addr 127.0.0.1 --master_port 61000"
    )
    assert flags(words)["deepspeed"] == f"{checkout}/examples/uni_dpo/ds_z2.json"


def test_without_gpus_there_is_one_process_and_no_deepspeed(checkout):
    words = dry_run("Qwen2_VL_2B_uni_dpo.sh", root=checkout, GPU_LIST="")
    assert words[:4] == ["env", "CUDA_VISIBLE_DEVICES=", "python", f"{checkout}/src/train.py"]
    assert "deepspeed" not in flags(words)


def test_the_dataset_is_found_in_either_place(checkout):
    (checkout / "data").mkdir()
    assert flags(dry_run("Qwen2_VL_2B_dpo.sh", root=checkout))["dataset_dir"] == f"{checkout}/data/uni_dpo"
    (checkout / "data/uni_dpo_image_only_mcq_short_long_50k.json").write_text("[]")
    assert flags(dry_run("Qwen2_VL_2B_dpo.sh", root=checkout))["dataset_dir"] == f"{checkout}/data"
    own = flags(dry_run("Qwen2_VL_2B_dpo.sh", root=checkout, DATASET_DIR="/my data"))
    assert own["dataset_dir"] == "/my data"


def test_the_log_starts_with_the_settings_and_the_exit_status_is_the_trainings(checkout, tmp_path):
    out = tmp_path / "my output"
    settings = {"OUTPUT_DIR": str(out), "GPU_LIST": "", "MODEL_PATH": "/my models/$(echo Qwen); #"}
    done = run("Qwen2_VL_2B_simpo.sh", root=checkout, **settings)
    assert done.returncode == 3
    log = (out / "log/train.log").read_text()
    assert "TRAIN" in done.stdout
    assert "--model_name_or_path /my models/$(echo Qwen); #\n" in log
    assert log.index("--simpo_gamma 1.0\n") < log.index("TRAIN")
    run("Qwen2_VL_2B_simpo.sh", root=checkout, **settings)
    assert (out / "log/train.log").read_text().startswith(log)


def test_a_finished_training_is_not_overwritten_unasked(checkout, tmp_path):
    (tmp_path / "trainer_state.json").write_text("{}")
    settings = {"OUTPUT_DIR": str(tmp_path), "GPU_LIST": ""}
    done = run("Qwen2_VL_2B_uni_dpo.sh", root=checkout, **settings)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tmp_path} holds a finished training")
    done = run("Qwen2_VL_2B_uni_dpo.sh", root=checkout, OVERWRITE_OUTPUT_DIR="true", **settings)
    assert "'--overwrite_output_dir', 'true'" in done.stdout


@pytest.mark.parametrize("python", [Path(sys.executable), OLDEST], ids=["newest", "oldest"])
def test_llamafactory_accepts_every_recipe(python, tmp_path):
    if not python.exists() and not os.environ.get("UNI_DPO_REQUIRE_UPSTREAM"):
        pytest.skip(f"{python} is missing: `make oldest` makes it")
    on_cpu = {"use_cpu": "true", "output_dir": str(tmp_path / "out")}
    asked: list[list[str]] = []
    for recipe in PUBLISHED:
        passed = {**flags(dry_run(recipe, DEEPSPEED="")), **on_cpu}
        asked.append([word for name, value in passed.items() for word in (f"--{name}", value)])
    for recipe in sorted(RECIPES.glob("Qwen2_VL_*.yaml")):
        asked.append([str(recipe), *(f"{name}={value}" for name, value in on_cpu.items())])
    assert len(asked) == 9
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "src")}
    done = subprocess.run(
        [python, "-c", PARSE],
        input=json.dumps(asked),
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    parsed = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("parsed")]
    dataset = "uni_dpo_image_only_mcq_short_long_50k"
    assert parsed == [
        ["uni_dpo", "6e-06", "0", dataset],
        ["sigmoid", "5e-07", "0", dataset],
        ["simpo", "5e-07", "0", dataset],
        [*["sigmoid:", "0.8,", "bco_pair:", "0.2,", "sft:", "1"], "6e-05", "0", dataset],
        ["uni_dpo", "6e-06", "0", dataset],
        *[["uni_dpo", "6e-05", "0", dataset]] * 3,
        ["uni_dpo", "6e-05", "0", "videos"],
    ]


@pytest.mark.parametrize("loss", ["dpo", "simpo"])
def test_the_published_names_are_the_same_files(loss: str) -> None:
    """So that nothing is lost where a file system does not tell capitals apart."""
    ours, published = (RECIPES / f"{name}_2B_{loss}.sh" for name in ("Qwen2_VL", "Qwen2_vl"))
    assert published.read_bytes() == ours.read_bytes()
    assert published.stat().st_mode == ours.stat().st_mode
