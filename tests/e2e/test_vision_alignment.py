"""The vision alignment recipes as their page shows them, on the digits and the tiny model."""

import importlib.util
import itertools
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml

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
    app(shlex.split(command), standalone_mode=False)


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


def config(folder: Path, stage: str, **settings: Any) -> Path:
    """An online recipe over the tiny data, with other settings; `None` takes one away."""
    recipe = yaml.safe_load((RECIPES / f"{stage}.yaml").read_text())
    recipe |= {"questions": {"path": "prompts.jsonl", "limit": 64}, "bf16": False, "output_dir": stage} | settings
    (folder / f"{stage}.yaml").write_text(yaml.safe_dump({k: v for k, v in recipe.items() if v is not None}))
    return folder / f"{stage}.yaml"


@pytest.fixture(scope="module")
def reward_model(folder: Path) -> str:
    """What two steps of the reward recipe make of the random model: what it says is arbitrary."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        train("reward", "model_name_or_path=model output_dir=young_reward max_steps=2 learning_rate=1e-2")
    return "young_reward"


def test_ppo_is_paid_what_score_says(
    folder: Path, reward_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The mean reward in the log is the mean of the ratings that `uni-dpo score` gives to the same answers."""
    from uni_dpo.ppo import trainer

    answered: list[dict[str, Any]] = []
    make_reward = trainer.make_reward

    def recording(*arguments: Any, **settings: Any) -> Any:
        reward = make_reward(*arguments, **settings)

        def rate(questions: Sequence[Any], answers: Sequence[str]) -> list[float]:
            pairs = zip(questions, answers, strict=True)
            answered.extend({"question": q.text, "images": list(q.images), "prediction": a} for q, a in pairs)
            return reward(questions, answers)

        return rate

    monkeypatch.setattr(trainer, "make_reward", recording)
    monkeypatch.chdir(folder)
    tiny = {"steps": 2, "rollout_batch_size": 8, "mini_batch_size": 4, "max_tokens": 6}
    run(f"ppo {config(folder, 'ppo', model='model', reward={'model': reward_model}, **tiny)}")
    assert "in the first step" in capsys.readouterr().out
    (folder / "answered.jsonl").write_text("".join(json.dumps(row) + "\n" for row in answered))
    run(f"score answered.jsonl rated.jsonl --model {reward_model} --batch-size 3")
    ratings = [row["score"] for row in rows(folder / "rated.jsonl")]
    assert len(set(ratings)) > 8
    paid = [line["reward"] for line in rows(folder / "ppo" / "ppo_log.jsonl")]
    assert paid == pytest.approx([fmean(ratings[:8]), fmean(ratings[8:])], rel=1e-4)
    assert (folder / "ppo" / "adapter_model.safetensors").is_file()


def test_grpo_runs_with_the_reward_model(
    folder: Path, reward_model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    tiny = {"max_steps": 2, "generation_batch_size": 16, "max_completion_length": 6}
    run(f"grpo {config(folder, 'grpo', model='model', reward={'model': reward_model}, logging_steps=1, **tiny)}")
    assert "in the first line of the log" in capsys.readouterr().out
    log = json.loads((folder / "grpo" / "trainer_state.json").read_text())["log_history"]
    assert log[0]["reward_std"] > 0
    assert log[0]["kl"] == pytest.approx(0, abs=1e-6)
    assert (folder / "grpo" / "adapter_model.safetensors").is_file()


def test_the_recipe_without_a_gpu_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Shortened to one step, which the recipe's `logging_steps` leaves out of the log."""
    monkeypatch.chdir(folder)
    changed = "model=model output_dir=grpo_tiny questions.path=prompts.jsonl questions.limit=8 max_steps=1"
    small = "per_device_train_batch_size=8 generation_batch_size=8 max_completion_length=4"
    run(f"grpo {RECIPES / 'grpo_tiny.yaml'} {changed} {small}")
    assert capsys.readouterr().out.endswith("reward: no step was logged (see logging_steps)\ngrpo_tiny\n")
    assert (folder / "grpo_tiny" / "model.safetensors").is_file()


def test_ranked_lists_give_all_their_pairs(folder: Path) -> None:
    """Two answers make one pair, three make three."""
    expected = []
    lists = json.loads((folder / "llava" / "ranked.json").read_text())
    for row in lists:
        expected += itertools.combinations(row["conversations"][-1]["value"], 2)
    assert [(pair["chosen"], pair["rejected"]) for pair in rows(folder / "ranked.json")] == expected
    assert len(expected) > len(lists)


@pytest.mark.slow
def test_the_quartet(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """SFT, reward model, rating, Uni-DPO and DPO on the ratings, prediction.

    Of held-out images, the reward model puts the right digit above a wrong one far above chance: 0.5, with a standard
    deviation of 0.027.
    """
    monkeypatch.chdir(folder)
    train("sft", "model_name_or_path=model output_dir=sft learning_rate=3e-3 warmup_ratio=0.2 num_train_epochs=12 "
          "per_device_train_batch_size=16")  # fmt: skip
    train("reward", "model_name_or_path=sft output_dir=reward learning_rate=4e-4 warmup_ratio=0.1 num_train_epochs=2")
    run("score held_out.json held_out_scored.json --model reward --batch-size 64")
    scored = rows(folder / "held_out_scored.json")
    assert len(scored) == 347
    assert sum(row["score_chosen"] > row["score_rejected"] for row in scored) > 0.85 * 347

    run("score ranked.json scored.json --model reward --batch-size 64")
    assert all({"score_chosen", "score_rejected"} <= row.keys() for row in rows(folder / "scored.json"))
    for stage in ("uni_dpo", "dpo"):
        train(stage, f"model_name_or_path=sft output_dir={stage} max_steps=2 learning_rate=1e-5")
    capsys.readouterr()
    run("predict questions.jsonl predictions.jsonl --model sft --max-tokens 12")
    assert "accuracy" in capsys.readouterr().out
    answered = rows(folder / "predictions.jsonl")
    assert len(answered) == 347
    assert sum(row["correct"] for row in answered) > 0.8 * 347


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


def test_the_full_size_online_recipes_are_configs() -> None:
    from uni_dpo.grpo.config import GRPOSettings, trl_arguments
    from uni_dpo.ppo.config import PPOConfig

    ppo = PPOConfig.load(RECIPES / "ppo.yaml")
    grpo = GRPOSettings.load(RECIPES / "grpo.yaml", ["bf16=false"])
    assert ppo.reward.model == grpo.reward.model == "saves/vision_alignment/reward"
    assert ppo.questions == grpo.questions
    arguments = trl_arguments(grpo)
    assert (arguments.num_generations, arguments.steps_per_generation, arguments.beta) == (8, 16, 0.04)
