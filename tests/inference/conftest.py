"""The tiny text model, and versions of it after training that answer otherwise."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Qwen2 of the text recipe, whose small weights would repeat one token for ever, with larger ones."""
    import torch

    from uni_dpo.demo.tiny_model import write_tiny_text_model

    torch.set_num_threads(1)
    return write_tiny_text_model(tmp_path_factory.mktemp("models") / "original", "writer", spread=0.12)


@pytest.fixture(scope="session")
def adapter(original: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter strong enough to change every answer; it names its base."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(original)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"))
    draw = torch.Generator().manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn(parameter.shape, generator=draw)
    folder = tmp_path_factory.mktemp("models") / "adapter"
    model.save_pretrained(folder)
    assert json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"] == str(original)
    return folder


@pytest.fixture(scope="session")
def merged(original: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The original with the adapter merged in: a whole trained model."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("models") / "merged"
    shutil.copytree(original, folder)
    PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(original), adapter
    ).merge_and_unload().save_pretrained(folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Three prompts whose ids are numbers that do not follow the rows."""
    rows: list[dict[str, Any]] = [
        {"id": 7, "prompt": "Is rain good?"},
        {"id": 2, "prompt": "真人化是否合適？"},
        {"id": 10, "prompt": "Is <b>snow</b> good, and why would anybody think so?"},
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(rows), encoding="utf-8")
    return tmp_path / "prompts.json"
