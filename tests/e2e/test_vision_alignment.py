"""The vision alignment recipes as their page shows them, on the digits and the tiny model."""

import importlib.util
import itertools
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from uni_dpo.cli import predict, score
from uni_dpo.cli.app import app

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "examples" / "vision_alignment"
TINY = (
    "dataset_dir=. flash_attn=auto bf16=false use_cpu=true freeze_vision_tower=false "
    "freeze_multi_modal_projector=false cutoff_len=256 preprocessing_num_workers=1 "
    "gradient_accumulation_steps=1 per_device_train_batch_size=32 plot_loss=false"
)


def run(command: str) -> None:
    """A line of the page, in this process."""
    words = shlex.split(command)
    commands = typer.Typer()
    commands.command("score")(score.score)
    commands.command("predict")(predict.predict)
    (commands if words[0] in ("score", "predict") else app)(words, standalone_mode=False)


def train(stage: str, *settings: str) -> None:
    run(f"train {RECIPES / stage}.yaml {TINY} {' '.join(settings)}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data in LlamaFactory's layouts, the model, and the recipes' `dataset_info.json`."""
    folder = tmp_path_factory.mktemp("vision_alignment")
    spec = importlib.util.spec_from_file_location("prepare_tiny", RECIPES / "prepare_tiny.py")
    assert spec is not None
    assert spec.loader is not None
    prepare_tiny = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(prepare_tiny)
    prepare_tiny.prepare(folder)
    (folder / "dataset_info.json").write_text((RECIPES / "dataset_info.json").read_text())
    sft = "--format llava-sft --to llamafactory-sharegpt"
    run(f"data convert {sft} {folder}/llava/sft.json {folder}/sft.json")
    for name in ("ranked", "held_out"):
        run(f"data convert --format llava {folder}/llava/{name}.json {folder}/{name}.json")
    return folder


def rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text()
    return json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]


def test_ranked_lists_give_all_their_pairs(folder: Path) -> None:
    """Two answers make one pair, three make three."""
    expected = []
    for row in json.loads((folder / "llava" / "held_out.json").read_text()):
        expected += itertools.combinations(row["conversations"][-1]["value"], 2)
    assert [(pair["chosen"], pair["rejected"]) for pair in rows(folder / "held_out.json")] == expected
    assert len(expected) > 347


@pytest.mark.slow
def test_the_quartet(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """SFT, reward model, rating, Uni-DPO and DPO on the ratings, prediction.

    Of held-out images, the reward model puts the right digit above a wrong one far above chance; the evasions, which
    need no look at the image, are not counted.
    """
    monkeypatch.chdir(folder)
    train("sft", "model_name_or_path=model output_dir=sft learning_rate=3e-3 num_train_epochs=15 "
          "per_device_train_batch_size=16")  # fmt: skip
    train("reward", "model_name_or_path=sft output_dir=reward learning_rate=4e-4 num_train_epochs=4")
    run("score held_out.json held_out_scored.json --model reward --batch-size 64")
    scored = [row for row in rows(folder / "held_out_scored.json") if row["rejected"].startswith("The digit is")]
    agreeing = sum(row["score_chosen"] > row["score_rejected"] for row in scored) / len(scored)
    assert len(scored) == 347
    assert agreeing > 0.6  # chance is 0.5 with a standard deviation of 0.027

    run("score ranked.json scored.json --model reward --batch-size 64")
    assert all({"score_chosen", "score_rejected"} <= row.keys() for row in rows(folder / "scored.json"))
    for stage in ("uni_dpo", "dpo"):
        train(stage, f"model_name_or_path=sft output_dir={stage} max_steps=2 learning_rate=1e-5")
    capsys.readouterr()
    run("predict questions.jsonl predictions.jsonl --model sft --max-tokens 12")
    assert "accuracy" in capsys.readouterr().out
    answered = rows(folder / "predictions.jsonl")
    assert len(answered) == 347
    assert sum(row["correct"] for row in answered) > 0.3 * 347


@pytest.mark.parametrize("stage", ["sft", "reward", "dpo", "uni_dpo", "predict"])
def test_the_full_size_recipes_are_what_llamafactory_takes(stage: str) -> None:
    if stage == "predict":
        pytest.importorskip("rouge_chinese", reason="LlamaFactory's prediction needs it for its metrics")
    from uni_dpo.llamafactory import register
    from uni_dpo.llamafactory.launch import read_arguments

    register()
    from llamafactory.hparams import get_train_args

    _, data, training, finetuning, _ = get_train_args(read_arguments([str(RECIPES / f"{stage}.yaml"), "use_cpu=true"]))
    assert training.output_dir == f"saves/vision_alignment/{stage}"
    assert data.template == "qwen2_vl"
    assert finetuning.stage == {"reward": "rm", "dpo": "dpo", "uni_dpo": "dpo"}.get(stage, "sft")


def test_the_ppo_recipe_is_a_config() -> None:
    from uni_dpo.ppo.config import PPOConfig

    assert PPOConfig.load(RECIPES / "ppo.yaml").reward.model == "saves/vision_alignment/reward"
