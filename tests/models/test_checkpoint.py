"""A model path is what its `config.json` says, whatever it is called."""

import json
from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.models.checkpoint import QWEN_FAMILIES, Checkpoint, find_checkpoint


def write_config(folder: Path, **content: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(content), encoding="utf-8")
    write_weights(folder / "model.safetensors")
    return folder


def write_weights(file: Path, header: str = '{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}') -> Path:
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(8))
    return file


def write_adapter(folder: Path, base: str | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}), encoding="utf-8")
    write_weights(folder / "adapter_model.safetensors")
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
        (tmp_path / "nowhere", None, "nowhere' cannot be loaded; there is no such folder here"),
        (broken / "config.json", None, "is a file; give the folder"),
        (empty, None, "it has no config.json"),
        (broken, None, "config.json is not JSON"),
        (text_only, None, r"model_type 'qwen2' \(Qwen2ForCausalLM, without a vision part\)"),
        (orphan, None, r"gone' \(named by .*adapter_config.json\) cannot be loaded"),
        (nameless, None, "names no base_model_name_or_path"),
        (text_only, str(empty), "empty is not a LoRA adapter"),
    ):
        with pytest.raises(UniDPOError, match=message):
            find_checkpoint(str(path), adapter).of(QWEN_FAMILIES)


def test_a_hub_name_that_cannot_be_had_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(name: str, **_: object) -> str:
        raise OSError("cannot reach the hub\nand a long story")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UniDPOError, match=r"some-team/some-model' cannot be loaded; .*: cannot reach the hub$"):
        find_checkpoint("some-team/some-model")


def test_damaged_weights_are_one_line_that_names_the_file(tmp_path: Path) -> None:
    folder = write_config(tmp_path / "model", model_type="qwen2_vl")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    assert find_checkpoint(folder).family == "qwen2_vl"
    for content in (whole[:-1], whole + b"x", whole[:30], whole[:3], b"", b"\xff" * 8 + whole[8:]):
        weights.write_bytes(content)
        with pytest.raises(UniDPOError, match=r"model\.safetensors: is damaged"):
            find_checkpoint(folder)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(UniDPOError, match=r"model\.safetensors: the weights are missing; pytorch_model.bin is"):
        find_checkpoint(folder)
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {"w": "one.safetensors"}}')
    with pytest.raises(UniDPOError, match=r"one\.safetensors: the weights are missing"):
        find_checkpoint(folder)
    write_weights(folder / "one.safetensors")
    assert find_checkpoint(folder).base == folder
    (folder / "config.json").write_text("[]")
    with pytest.raises(UniDPOError, match=r"config\.json holds no JSON object"):
        find_checkpoint(folder)


def test_an_adapter_with_damaged_weights_is_named(tmp_path: Path) -> None:
    adapter = write_adapter(tmp_path / "lora", str(write_config(tmp_path / "base", model_type="llava")))
    (adapter / "adapter_model.safetensors").write_bytes(b"cut")
    with pytest.raises(UniDPOError, match=r"adapter_model\.safetensors: is damaged"):
        find_checkpoint(adapter)
