"""The text recipe: from its README line to the answers side by side, on a CPU with the tiny model."""

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from uni_dpo import cli

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "examples" / "text_dpo"
GPU, CPU = 0, 1


def commands(block: int) -> list[list[str]]:
    """The lines of one of the README's shell blocks, split as a shell splits them."""
    text = (RECIPE / "README.md").read_text(encoding="utf-8")
    return [shlex.split(line) for line in text.split("```bash\n")[block + 1].split("```")[0].strip().splitlines()]


def uni_dpo(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["uni-dpo", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (None, 0), ended.value.code


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which every CPU line of the README has run."""
    folder = tmp_path_factory.mktemp("recipe")
    shutil.copytree(RECIPE, folder / "examples" / "text_dpo")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        for program, *arguments in commands(CPU):
            if program == "python":
                subprocess.run([sys.executable, *arguments], check=True, capture_output=True)
            else:
                uni_dpo(monkeypatch, *arguments)
    return folder


def test_the_pairs_take_the_side_that_was_asked_for(finished: Path) -> None:
    pairs = json.loads((finished / "outputs" / "text_dpo" / "pairs.json").read_text(encoding="utf-8"))
    rows = json.loads((RECIPE / "stances.json").read_text(encoding="utf-8"))
    assert [pair["position"] for pair in pairs] == ["support"] + ["oppose"] * 11
    assert pairs[0]["chosen"] == rows[0]["support"]
    assert pairs[1]["chosen"] == rows[1]["oppose"]


def test_the_adapter_is_the_exercises(finished: Path) -> None:
    adapter = json.loads((finished / "saves" / "text_dpo" / "adapter_config.json").read_text())
    assert (adapter["r"], adapter["lora_alpha"], adapter["lora_dropout"]) == (64, 16, 0.1)
    log = json.loads((finished / "saves" / "text_dpo" / "trainer_state.json").read_text())["log_history"]
    assert [line["step"] for line in log if "loss" in line] == [1, 2]
    assert log[0]["loss"] == pytest.approx(0.6931, abs=1e-3)


def test_the_answers_stand_side_by_side_by_id(finished: Path) -> None:
    folder = finished / "outputs" / "text_dpo" / "comparison"
    rows = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    asked = json.loads((RECIPE / "test_prompts.json").read_text(encoding="utf-8"))
    assert [{"id": row["id"], "prompt": row["prompt"]} for row in rows] == asked
    for row in rows:
        assert list(row) == ["id", "prompt", "response_from_original_model", "response_from_trained_model"]
        for answer in ("response_from_original_model", "response_from_trained_model"):
            assert row["prompt"] not in row[answer]
            assert "<|im_" not in row[answer]
            assert len(row[answer]) <= 16 * 32  # no token of the tiny model has more than 16 letters
    page = (folder / "comparison.html").read_text(encoding="utf-8")
    assert all(prompt["prompt"] in page for prompt in asked)
    assert "Trained with epochs: 1, pairs: 12, support ratio: 0.08." in page  # one of twelve supports


def test_a_system_prompt_reaches_pairs_training_and_comparison(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    made = ["data", "stance", "examples/text_dpo/stances.json", "outputs/spoken/pairs.json", "--support-ratio", "0.1"]
    uni_dpo(monkeypatch, *made, "--system", "You doubt everything.")
    rows = json.loads((finished / "outputs/spoken/pairs.json").read_text(encoding="utf-8"))
    assert {row["system"] for row in rows} == {"You doubt everything."}
    uni_dpo(monkeypatch, "data", "register", "spoken", "outputs/spoken/pairs.json", "--dataset-dir", "outputs/spoken")
    entry = json.loads((finished / "outputs/spoken/dataset_info.json").read_text())["spoken"]
    assert entry["columns"]["system"] == "system"


def test_with_scores_the_same_recipe_is_uni_dpo(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished)
    folder = finished / "outputs" / "text_dpo"
    pairs = json.loads((folder / "pairs.json").read_text(encoding="utf-8"))
    scored = [pair | {"score_chosen": 4.0, "score_rejected": 4.0 - at / 4} for at, pair in enumerate(pairs)]
    (folder / "scored.json").write_text(json.dumps(scored), encoding="utf-8")
    register = ["data", "register", "scored_stances", "outputs/text_dpo/scored.json"]
    uni_dpo(monkeypatch, *register, "--dataset-dir", str(folder))
    line = next(line for line in (ROOT / "docs" / "text_dpo.md").read_text().splitlines() if "scored_stances" in line)
    _, _, _, *overrides = shlex.split(line)
    config = "examples/text_dpo/cpu_without_quantization.yaml"
    more = ["model_name_or_path=outputs/text_dpo/model", "output_dir=saves/scored"]
    uni_dpo(monkeypatch, "train", config, *overrides, *more)
    log = json.loads((finished / "saves" / "scored" / "trainer_state.json").read_text())["log_history"]
    assert "uni_dpo/w_perf" in log[0]


def test_the_gpu_recipe_runs_on_a_cpu_where_bitsandbytes_is_installed(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NF4 weights, bfloat16 and the 8-bit optimizer as written; only the model and the place are others."""
    bitsandbytes = pytest.importorskip("bitsandbytes", minversion="0.50", reason="QLoRA needs it")
    monkeypatch.chdir(finished)
    steps = []
    step = bitsandbytes.optim.AdamW.step
    monkeypatch.setattr(
        bitsandbytes.optim.AdamW, "step", lambda self, *given: steps.append(self.args.optim_bits) or step(self, *given)
    )
    settings = ["model_name_or_path=outputs/text_dpo/model", "output_dir=saves/qlora", "use_cpu=true", "warmup_ratio=0"]
    uni_dpo(monkeypatch, "train", "examples/text_dpo/qlora.yaml", *settings)
    log = json.loads((finished / "saves" / "qlora" / "trainer_state.json").read_text())["log_history"]
    found = [line["loss"] for line in log if "loss" in line]
    assert found[0] == pytest.approx(0.6931, abs=1e-3)
    assert found[1] < found[0]
    assert steps == [8, 8]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["compare", "prompts.json", "--trained", "no-adapter", "--output", "out"], "prompts.json: no such file"),
        (["compare", "asked.json", "--trained", "no-adapter", "--output", "out"], "name the model before training"),
        (
            ["trl-dpo", "--model_name_or_path", "gone", "--dataset_name", "asked.json", "--output_dir", "out"],
            "no column 'score_chosen'",
        ),
    ],
)
def test_faults_are_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(RECIPE / "test_prompts.json", "asked.json")
    more = ["--use_cpu", "true", "--bf16", "false"] if arguments[0] == "trl-dpo" else []
    monkeypatch.setattr(sys, "argv", ["uni-dpo", *arguments, *more])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert words in str(ended.value.code)


def test_the_full_size_commands_say_what_the_exercise_says() -> None:
    settings = yaml.safe_load((RECIPE / "qlora.yaml").read_text(encoding="utf-8"))
    exercise = {
        "quantization_bit": 4,
        "quantization_type": "nf4",
        "lora_rank": 64,
        "lora_alpha": 16,
        "lora_dropout": 0.1,
        "learning_rate": 2e-4,
        "optim": "paged_adamw_8bit",
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 8,
        "pref_beta": 0.1,
        "num_train_epochs": 1.0,
    }
    assert {name: settings[name] for name in exercise} == exercise
    cpu = yaml.safe_load((RECIPE / "cpu_without_quantization.yaml").read_text(encoding="utf-8"))
    differs = {"model_name_or_path", "optim", "bf16", "use_cpu"}
    differs |= {name for name in settings if name.startswith("quantization_")}
    assert {name for name in settings | cpu if settings.get(name) != cpu.get(name)} == differs
    stance = next(line for line in commands(GPU) if line[1:3] == ["data", "stance"])
    assert stance[stance.index("--support-ratio") + 1] == "0.1"
    assert stance[stance.index("--count") + 1] == "50"


def test_llamafactory_parses_the_full_size_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from uni_dpo.llamafactory import register
    from uni_dpo.llamafactory.launch import read_arguments

    register()
    from llamafactory.hparams import get_train_args

    monkeypatch.chdir(ROOT)
    train = next(line for line in commands(GPU) if line[1] == "train")
    model, _, training, finetuning, _ = get_train_args(read_arguments([*train[2:], "use_cpu=true"]))
    assert (model.quantization_bit, model.quantization_type) == (4, "nf4")
    assert (finetuning.lora_rank, finetuning.lora_alpha, finetuning.pref_loss) == (64, 16, "sigmoid")
    assert (training.optim, training.learning_rate) == ("paged_adamw_8bit", 2e-4)
