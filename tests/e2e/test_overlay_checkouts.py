"""The overlay on LlamaFactory's released source trees: by plain `cp` it trains to the numbers of `uni-dpo train`."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
ENVIRONMENTS = {"0.9.4": REPOSITORY / ".venv-lf094/bin/python", "0.9.5": Path(sys.executable)}
HIDDEN = {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LOCAL_RANK"}
SETTINGS = {
    "MODEL_PATH": "model",
    "DATASET_DIR": "data",
    "DATASET": "tiny",
    "CUTOFF_LEN": "256",
    "GPU_LIST": "",
    "GLOBAL_BATCH_SIZE": "4",
    "PER_GPU_BATCH_SIZE": "2",
    "LR": "1e-3",
    "BF16": "false",
    "SAVE_STEPS": "100",
    "PREPROCESSING_NUM_WORKERS": "1",
}
FLAGS = [
    *("--stage", "dpo", "--do_train", "true", "--finetuning_type", "full", "--pref_loss", "uni_dpo"),
    *("--freeze_vision_tower", "false", "--freeze_multi_modal_projector", "false"),
    *("--pref_beta", "2.0", "--model_name_or_path", "model", "--dataset_dir", "data", "--dataset", "tiny"),
    *("--template", "qwen2_vl", "--cutoff_len", "256", "--per_device_train_batch_size", "2"),
    *("--gradient_accumulation_steps", "2", "--max_steps", "2", "--learning_rate", "1e-3"),
    *("--lr_scheduler_type", "cosine", "--logging_steps", "1", "--save_strategy", "no", "--report_to", "none"),
]
"""What the recipe passes, with SETTINGS and `--max_steps 2`, as far as it matters to the numbers."""


@dataclass(frozen=True)
class Workplace:
    """A checkout with the overlay copied in, and a folder with a model and data to train in."""

    python: Path
    checkout: Path
    folder: Path

    def run(self, *command: str | Path, path: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command in the folder; `uni_dpo` comes from `path`, else from nowhere but the command itself."""
        environment = {
            **{name: value for name, value in os.environ.items() if name not in HIDDEN},
            **settings,
            **({"PYTHONPATH": str(path)} if path else {}),
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
        }
        return subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=300)

    def losses(self, output: str) -> list[tuple[float, float]]:
        """Loss and gradient norm of every step of a finished run."""
        state = json.loads((self.folder / output / "trainer_state.json").read_text())
        steps = [(step["loss"], step["grad_norm"]) for step in state["log_history"] if "loss" in step]
        assert len(steps) == 2
        return steps


def unpacked(version: str) -> Path:
    tree, python = REPOSITORY / f".upstream/llamafactory-{version}", ENVIRONMENTS[version]
    if not (tree.is_dir() and python.exists()) and not os.environ.get("UNI_DPO_REQUIRE_UPSTREAM"):
        pytest.skip(f"{tree} or {python} is missing: `make upstream oldest` makes them")
    return tree


@pytest.fixture(scope="module", params=list(ENVIRONMENTS))
def workplace(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, digits) -> Iterator[Workplace]:
    version = request.param
    folder = tmp_path_factory.mktemp(f"llamafactory-{version}")
    checkout = folder / "checkout"
    shutil.copytree(unpacked(version), checkout)
    parts = ["LlamaFactory/.", "src", "data", "examples", "scripts"]
    subprocess.run(["cp", "-r", *parts, f"{checkout}/"], cwd=REPOSITORY, check=True)
    for cache in (checkout / "src/uni_dpo").rglob("__pycache__"):
        shutil.rmtree(cache)
    place = Workplace(ENVIRONMENTS[version], checkout, folder)
    make_model = "from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl as write; write('model')"
    made = place.run(place.python, "-c", make_model, path=REPOSITORY / "src")
    assert made.returncode == 0, made.stderr[-3000:]
    write_data(folder / "data", digits["preference"][:8])
    yield place
    shutil.rmtree(folder)


def write_data(folder: Path, digits) -> None:
    rows = [
        {
            "instruction": "<image>Which digit?",
            "chosen": digit.answer,
            "rejected": "The digit is nine, or so.",
            "score_chosen": 3.0 + index % 3,
            "score_rejected": 1.0,
            "images": [str(digit.image)],
        }
        for index, digit in enumerate(digits)
    ]
    names = ("chosen", "rejected", "images", "score_chosen", "score_rejected")
    columns = {"prompt": "instruction", **{name: name for name in names}}
    entry = {"ranking": True, "columns": columns}
    described = {"tiny": {"file_name": "tiny.json", **entry}, "bad": {"file_name": "bad.json", **entry}}
    bad = [{**rows[0], "score_chosen": None}, *rows[1:]]
    folder.mkdir()
    for name, content in (("dataset_info", described), ("tiny", rows), ("bad", bad)):
        (folder / f"{name}.json").write_text(json.dumps(content))


def require(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]


@pytest.fixture(scope="module")
def trained_here(workplace: Workplace) -> list[tuple[float, float]]:
    """The numbers of `uni-dpo train`, nothing copied."""
    train = "from uni_dpo.cli import main; main()"
    done = workplace.run(
        workplace.python, "-c", train, "train", *FLAGS, "--output_dir", "here", path=REPOSITORY / "src"
    )
    require(done)
    return workplace.losses("here")


def test_the_recipe_and_train_py_give_the_numbers_of_uni_dpo_train(workplace: Workplace, trained_here):
    recipe = workplace.checkout / "examples/uni_dpo/Qwen2_VL_2B_uni_dpo.sh"
    done = workplace.run("bash", recipe, "--max_steps", "2", OUTPUT_DIR="recipe", **SETTINGS)
    require(done)
    assert workplace.losses("recipe") == trained_here
    assert (workplace.folder / "recipe/training_loss.png").exists()
    assert list((workplace.checkout / "src/uni_dpo/llamafactory").glob("__pycache__/trainer.*.pyc")), (
        "the plugin that trained was not the one in the checkout"
    )


def test_llamafactory_cli_gives_the_numbers_of_uni_dpo_train(workplace: Workplace, trained_here):
    source = workplace.checkout / "src"
    command = (workplace.python, "-m", "llamafactory.cli", "train", *FLAGS, "--output_dir", "cli")
    require(workplace.run(*command, path=source))
    assert workplace.losses("cli") == trained_here


def test_llamaboard_shows_the_loss_with_its_settings_and_trains_with_it(workplace: Workplace):
    """As `llamafactory-cli webui` makes it; `tests/llamafactory/test_webui.py` drives one in a browser."""
    driver = Path(__file__).with_name("llamaboard.py")
    done = workplace.run(
        workplace.python,
        driver,
        workplace.folder / "model",
        "data",
        "board",
        path=workplace.checkout / "src",
        HF_HUB_OFFLINE="1",
    )
    require(done)
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("SAID "))
    said = json.loads(line.removeprefix("SAID "))
    assert {"sigmoid", "simpo", "uni_dpo"} <= {*said["losses"]}
    assert said["settings"] == {
        "uni_dpo_qual_eta": 0.7,
        "uni_dpo_tau_ref": 2.0,
        "uni_dpo_perf_gamma": 3.0,
        "uni_dpo_nll_lambda": 0.001,
        "uni_dpo_tau_good": 2.5,
    }
    assert (said["rows"][0]["score_chosen"], said["rows"][0]["score_rejected"]) == (3.0, 1.0)
    for part in ("llamafactory-cli train", "--pref_loss uni_dpo", "--pref_beta 2.0", "--uni_dpo_qual_eta 0.5"):
        assert part in said["command"]
    assert "Finished" in said["end"], said["end"]
    (state,) = workplace.folder.glob("saves/Custom/full/board/trainer_state.json")
    first = json.loads(state.read_text())["log_history"][0]
    assert first["step"] == 1
    assert 0.5 < first["uni_dpo/w_qual"] < 1


def test_bad_data_is_an_error_message_without_a_traceback(workplace: Workplace):
    command = (workplace.python, workplace.checkout / "src/train.py", *FLAGS, "--output_dir", "bad")
    done = workplace.run(*command, "--dataset", "bad")
    assert done.returncode == 1
    assert "data/bad.json, row 0 (line 1), score_chosen: null" in done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(workplace.folder.glob("bad/*.safetensors"))


@pytest.mark.nightly  # DeepSpeed's launcher; test_train_cli.py trains with ZeRO through torchrun
def test_deepspeed_gives_the_numbers_of_uni_dpo_train(workplace: Workplace, trained_here):
    launcher = workplace.python.with_name("deepspeed")
    if not launcher.exists():
        pytest.skip("DeepSpeed is installed beside the newest LlamaFactory only")
    config = workplace.checkout / "examples/uni_dpo/ds_z2.json"
    script = workplace.checkout / "src/train.py"
    zero = ("--deepspeed", config, "--output_dir", "zero")
    require(workplace.run(launcher, "--num_gpus", "1", script, *FLAGS, *zero))
    assert workplace.losses("zero") == [pytest.approx(step, rel=1e-4) for step in trained_here]


@pytest.mark.parametrize("version", list(ENVIRONMENTS))
def test_the_command_brings_what_the_one_line_brings_and_takes_it_out_again(version, tmp_path):
    checkout = tmp_path / "checkout"
    shutil.copytree(unpacked(version), checkout)
    overlay = (sys.executable, "-c", "from uni_dpo.cli import main; main()", "overlay")

    def run(command: str) -> str:
        done = subprocess.run([*overlay, command, checkout], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        if command != "revert":  # which works in whatever version the checkout is now
            assert done.stdout.startswith(f"LlamaFactory {version} in {checkout.resolve()}\n")
        return done.stdout

    def differing() -> set[str]:
        compared = subprocess.run(
            ["diff", "-rq", unpacked(version), checkout], capture_output=True, text=True, check=False
        )
        return set(compared.stdout.splitlines())

    assert "to replace (the original is kept): 1 files\n  src/llamafactory/train/dpo/__init__.py" in run("check")
    assert differing() == set()
    run("apply")
    changed = {line for line in differing() if line.startswith("Files")}
    assert {line.split(" differ")[0].rsplit("/checkout/", 1)[1] for line in changed} == {
        "data/dataset_info.json",
        "src/llamafactory/train/dpo/__init__.py",
    }
    assert run("apply").endswith("nothing to do\n")
    run("revert")
    assert differing() == set()


def test_another_folder_is_refused_in_one_line(tmp_path):
    overlay = (sys.executable, "-c", "from uni_dpo.cli import main; main()", "overlay", "apply", tmp_path)
    done = subprocess.run(overlay, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {tmp_path}: neither a LlamaFactory nor a VLMEvalKit checkout")
    assert done.stderr.count("\n") == 1
