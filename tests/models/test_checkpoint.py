"""A model path is what its `config.json` says, whatever it is called."""

import json
from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.models.checkpoint import Checkpoint, find_checkpoint


def write_config(folder: Path, **content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def write_adapter(folder: Path, base: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}), encoding="utf-8")
    return folder


def test_the_family_is_read_and_not_guessed_from_the_path(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "Qwen2-VL-llama", model_type="qwen2_5_vl", vision_config={})
    assert find_checkpoint(str(folder)) == Checkpoint(folder, None, "qwen2_5_vl")


def test_an_adapter_brings_its_base(tmp_path: Path) -> None:
    base = write_config(tmp_path / "base", model_type="qwen2_vl", vision_config={})
    adapter = write_adapter(tmp_path / "lora", str(base))
    assert find_checkpoint(str(adapter)) == Checkpoint(base, adapter, "qwen2_vl")
    assert find_checkpoint(str(base), str(adapter)) == Checkpoint(base, adapter, "qwen2_vl")
    assert find_checkpoint(str(adapter)).processor == base
    for name in ("tokenizer_config.json", "processor_config.json"):
        (adapter / name).write_text("{}", encoding="utf-8")
    assert find_checkpoint(str(adapter)).processor == adapter


def test_faults_are_named(tmp_path: Path) -> None:
    text_only = write_config(tmp_path / "text", model_type="qwen2", architectures=["Qwen2ForCausalLM"])
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{", encoding="utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    orphan = write_adapter(tmp_path / "orphan", str(tmp_path / "gone"))
    nameless = write_adapter(tmp_path / "nameless", None)
    for path, adapter, message in (
        (tmp_path / "nowhere", None, "nowhere does not exist"),
        (broken / "config.json", None, "is a file; give the folder"),
        (empty, None, "it has no config.json"),
        (broken, None, "config.json is not JSON"),
        (text_only, None, r"model_type 'qwen2' \(Qwen2ForCausalLM, without a vision part\)"),
        (orphan, None, r"gone \(named by .*adapter_config.json\) does not exist"),
        (nameless, None, "names no base_model_name_or_path"),
        (text_only, str(empty), "empty is not a LoRA adapter"),
    ):
        with pytest.raises(UniDPOError, match=message):
            find_checkpoint(str(path), adapter)


def test_a_hub_name_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(name: str) -> str:
        raise OSError("cannot reach the hub\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(
        UniDPOError, match=r"some-team/some-model is neither a folder here nor .*: cannot reach the hub$"
    ):
        find_checkpoint("some-team/some-model")
