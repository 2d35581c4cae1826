"""Device, dtype and attention follow what is there."""

import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from uni_dpo.errors import UniDPOError
from uni_dpo.models import loading as backend


def test_without_an_accelerator_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert backend.best_device() == "cpu"
    assert backend.best_attention("cpu", "torch.float32") == "sdpa"
    assert backend.find_dtype(None, "cpu") is torch.float32
    assert backend.find_dtype("float16", "cpu") is torch.float16


def test_each_process_takes_the_gpu_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert backend.best_device() == "cuda:0"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert backend.best_device() == "cuda:1"
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)  # a launcher that shows each process its own
    assert backend.best_device() == "cuda:0"


def test_flash_attention_only_where_it_imports_and_can_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", None)
    assert backend.best_attention("cuda:0", "torch.bfloat16") == "sdpa"
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))
    assert backend.best_attention("cuda:0", "torch.bfloat16") == "flash_attention_2"
    assert backend.best_attention("cuda:0", "torch.float32") == "sdpa"
    assert backend.best_attention("cpu", "torch.bfloat16") == "sdpa"


def test_half_precision_follows_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for supported, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda supported=supported: supported)
        assert backend.find_dtype(None, "cuda:0") is dtype


def test_an_unknown_dtype_is_named() -> None:
    with pytest.raises(UniDPOError, match=r"dtype is 'bfloat15'; it can be auto, .*; did you mean 'bfloat16'\?"):
        backend.find_dtype("bfloat15", "cpu")


@pytest.mark.parametrize(
    ("raised", "reason"),
    [
        (OSError("no weights\nsee …"), "no weights"),
        (KeyError("qwen9"), "'qwen9'"),
        (ValueError(), "ValueError"),
    ],
)
def test_a_model_that_cannot_be_loaded_is_named_in_one_line(raised: Exception, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UniDPOError) as caught, backend.one_line(str(tmp_path)):
        raise raised
    assert str(caught.value) == f"{tmp_path} cannot be loaded: {reason}"
    with (
        pytest.raises(UniDPOError, match=r"^gone cannot be loaded; there is no such folder here: "),
        backend.one_line("gone"),
    ):
        raise raised


def test_what_has_a_message_of_its_own_keeps_it() -> None:
    with pytest.raises(UniDPOError, match=r"^it has no chat template$"), backend.one_line("gone"):
        raise UniDPOError("it has no chat template")


def test_a_model_that_lacks_weights_is_refused_whoever_loads_it(tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForImageTextToText, PreTrainedModel

    shutil.copytree(tiny_qwen2_vl, tmp_path / "damaged")
    weights = load_file(tmp_path / "damaged/model.safetensors")
    left = {name: value for name, value in weights.items() if "mlp.down_proj" not in name}
    save_file(left, tmp_path / "damaged/model.safetensors", metadata={"format": "pt"})
    stock = PreTrainedModel.__dict__["from_pretrained"]
    with pytest.raises(UniDPOError, match=r"lacks \d+ weights of .*, such as .*down_proj"), backend.all_weights():
        AutoModelForImageTextToText.from_pretrained(tmp_path / "damaged")
    assert PreTrainedModel.__dict__["from_pretrained"] is stock
    with backend.all_weights():
        assert AutoModelForImageTextToText.from_pretrained(tiny_qwen2_vl).training is False
