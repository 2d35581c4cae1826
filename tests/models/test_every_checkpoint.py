"""Every command takes every checkpoint that training writes, or refuses it in the one sentence that says why."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from uni_dpo.data.questions import Question
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import Request, Sampling, make_backend

GREEDY = Sampling(temperature=0.0, max_tokens=3)
WIDTH = 128
"""Of the tiny checkpoint's hidden states."""
ASKED = "Which digit is it?"


def write_adapter(base: Path, folder: Path, *, quantized: bool) -> Path:
    """A LoRA adapter as training writes it, on whole weights or on weights of 4 bits."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForImageTextToText

    from uni_dpo.models.checkpoint import Checkpoint
    from uni_dpo.models.loading import load_model

    torch.manual_seed(0)
    if quantized:
        model = load_model(Checkpoint(base, None, "qwen2_vl"), dtype="float32", device="cpu", quantization="4bit")
    else:
        model = AutoModelForImageTextToText.from_pretrained(base, dtype=torch.float32)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(model, lora).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def checkpoints(
    tiny_qwen2_vl: Path, base_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, str], Path]:
    """(kind, template) → folder; every folder has a value head beside it."""
    import torch
    from safetensors.torch import save_file

    found = {}
    made = tmp_path_factory.mktemp("checkpoints")
    for template, base in (("instruct", tiny_qwen2_vl), ("base", base_checkpoint)):
        found["full", template] = Path(shutil.copytree(base, made / f"full-{template}"))
        for kind in ("lora", "qlora"):
            found[kind, template] = write_adapter(base, made / f"{kind}-{template}", quantized=kind == "qlora")
    head = {"v_head.summary.weight": torch.linspace(-1, 1, WIDTH)[None], "v_head.summary.bias": torch.zeros(1)}
    for folder in found.values():
        save_file(head, folder / "value_head.safetensors")
    return found


def predict(folder: Path, image: str, made: Path) -> None:
    import json

    from uni_dpo.inference.predict import predict_file
    from uni_dpo.inference.settings import PredictSettings

    (made / "q.jsonl").write_text(json.dumps({"id": "1", "question": ASKED, "images": [image]}) + "\n")
    report = predict_file(PredictSettings(made / "q.jsonl", made / "o.jsonl", str(folder), max_tokens=3))
    assert report.rows == 1


def compare(folder: Path, image: str, made: Path) -> None:
    from uni_dpo.inference.compare import Models, Prompt
    from uni_dpo.inference.compare import compare as answer

    adapter = (folder / "adapter_config.json").is_file()
    models = Models.find(str(folder), None if adapter else str(folder))
    (row,) = answer([Prompt(1, ASKED, (image,))], models, made / "answers", GREEDY)
    assert (row["response_from_original_model"] == row["response_from_trained_model"]) is not adapter


def sample(folder: Path, image: str, made: Path) -> None:
    from uni_dpo.engine.samplers import ModelSampler, ModelSamplerOptions, Sampled

    backend = make_backend({"model": str(folder)})
    sampler = ModelSampler(ModelSamplerOptions(n=2, max_tokens=3), {"sampler": backend}, seed=0)
    (sampled,) = sampler.sample([Question("1", ASKED, (image,))])
    assert isinstance(sampled, Sampled)


def evaluate(folder: Path, image: str, made: Path) -> None:
    from uni_dpo.vlmeval.kit import import_kit

    import_kit()
    from uni_dpo.vlmeval.qwen2_vl import Qwen2VLChat

    message = [{"type": "image", "value": image}, {"type": "text", "value": ASKED}]
    said = Qwen2VLChat(str(folder), max_new_tokens=3).generate(message)
    (reply,) = make_backend({"model": str(folder)}).generate([Request(ASKED, (image,))], GREEDY)
    assert said == reply[0].text  # type: ignore[index]


def score(folder: Path, image: str, made: Path) -> None:
    from uni_dpo.models.rewards import load_reward_model
    from uni_dpo.models.rewards.options import Conversation, RewardModelOptions

    model = load_reward_model(RewardModelOptions(folder, template="qwen2_vl", dtype="float32"))
    good, bad = (Conversation(f"<image>{ASKED}", answer, (image,)) for answer in ("four", "I do not know."))
    ratings = model.rate([good, bad])
    assert ratings == pytest.approx(model.rate([good]) + model.rate([bad]), abs=1e-4)
    assert ratings[0] != ratings[1]


def start_ppo(folder: Path, image: str, made: Path) -> None:
    from uni_dpo.online import RewardOptions
    from uni_dpo.ppo.config import PPOConfig
    from uni_dpo.ppo.policy import encode, load_policy

    policy, _, processor = load_policy(PPOConfig(str(folder), str(made / "out"), RewardOptions(function="exact")))
    assert encode(Question("1", ASKED, (image,)), processor)["input_ids"].shape[0] == 1
    starts_where_it_was_asked(policy.model, folder)


def start_grpo(folder: Path, image: str, made: Path) -> None:
    from uni_dpo.grpo.config import GRPOSettings, trl_arguments
    from uni_dpo.grpo.trainer import make_trainer
    from uni_dpo.online import RewardOptions

    settings = GRPOSettings(str(folder), str(made / "out"), RewardOptions(function="exact"))
    asked = [Question("1", ASKED, (image,), "four")]
    trainer = make_trainer(settings, trl_arguments(settings), asked, lambda questions, answers: [0.0] * len(answers))
    starts_where_it_was_asked(trainer.model, folder)


def start_trl(folder: Path, image: str, made: Path) -> None:
    from trl import ModelConfig

    from uni_dpo.models.checkpoint import find_checkpoint
    from uni_dpo.models.loading import load_processor
    from uni_dpo.trl.launch import _check_template, _load_model

    checkpoint = find_checkpoint(folder)
    turns = datasets.Dataset.from_list([{"chosen": [{"role": "assistant", "content": "four"}]}])
    _check_template(load_processor(checkpoint), str(folder), {"train": turns})
    model = _load_model(ModelConfig(model_name_or_path=str(folder)), checkpoint, str(made / "out"), trusted=False)
    starts_where_it_was_asked(model, folder)


def starts_where_it_was_asked(model: Any, folder: Path) -> None:
    """The weights are those that the model answers with, and its folder is what a new adapter would name."""
    import torch

    from uni_dpo.models.checkpoint import find_checkpoint
    from uni_dpo.models.loading import load_model

    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    asked = load_model(find_checkpoint(folder), dtype="float32", device="cpu").state_dict()
    named = load_model(find_checkpoint(plain.config._name_or_path), dtype="float32", device="cpu").state_dict()
    weights = plain.state_dict()
    own = {name.replace(".base_layer", ""): weights[name] for name in weights if "lora_" not in name}
    assert own.keys() == asked.keys() == named.keys()
    for name, weight in asked.items():
        torch.testing.assert_close(own[name].float(), weight, msg=name)
        torch.testing.assert_close(named[name], weight, msg=name)


COMMANDS: dict[str, Callable[[Path, str, Path], None]] = {
    "predict": predict, "score": score, "compare": compare, "engine": sample, "eval": evaluate,
    "ppo": start_ppo, "grpo": start_grpo, "trl": start_trl,
}  # fmt: skip
REFUSED = {
    ("grpo", "base"): "has the template of a base checkpoint, which TRL's GRPO cannot fill",
    ("trl", "base"): "has the template of a base checkpoint, which TRL cannot fill with turns",
}


@pytest.mark.parametrize("template", ["instruct", "base"])
@pytest.mark.parametrize("kind", ["full", "lora", "qlora"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_every_checkpoint(
    command: str, kind: str, template: str, checkpoints: dict, digits: dict, tmp_path: Path
) -> None:
    folder, image = checkpoints[kind, template], str(digits["train"][0].image)
    if words := REFUSED.get((command, template)):
        with pytest.raises(UniDPOError, match=words):
            COMMANDS[command](folder, image, tmp_path)
    else:
        COMMANDS[command](folder, image, tmp_path)
