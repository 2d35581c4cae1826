"""A folder is told for what it is from its files, and refused with the reason."""

import json
from pathlib import Path

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.models.rewards.options import RewardCheckpoint, RewardModelOptions, find_reward_checkpoint


def weights(*names: str) -> str:
    """A safetensors file of empty weights."""
    header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names})
    return len(header).to_bytes(8, "little").decode("latin-1") + header


HEAD = weights("v_head.summary.weight", "v_head.summary.bias")


def write(folder: Path, files: dict[str, object]) -> RewardModelOptions:
    kind = "adapter_model" if "adapter_config.json" in files else "model"
    for name, content in {f"{kind}.safetensors": weights(), **files}.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / name).write_bytes(text.encode("latin-1"))
    return RewardModelOptions(folder)


def test_a_value_head_takes_the_template_of_its_family(tmp_path: Path) -> None:
    options = write(tmp_path, {"config.json": {"model_type": "qwen2_5_vl"}, "value_head.safetensors": HEAD})
    assert find_reward_checkpoint(options) == RewardCheckpoint("value_head", str(tmp_path), None, "qwen2_vl")


def test_an_adapter_names_its_base(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    write(tmp_path / "base", {"config.json": {"model_type": "qwen2_vl"}})
    (tmp_path / "lora").mkdir()
    base = str(tmp_path / "base")
    adapter = {"adapter_config.json": {"base_model_name_or_path": base}, "value_head.safetensors": HEAD}
    options = write(tmp_path / "lora", adapter)
    assert find_reward_checkpoint(options) == RewardCheckpoint("value_head", base, tmp_path / "lora", "qwen2_vl")


def test_a_classifier_with_one_label(tmp_path: Path) -> None:
    config = {"architectures": ["LlamaForSequenceClassification"], "id2label": {"0": "LABEL_0"}}
    assert find_reward_checkpoint(write(tmp_path, {"config.json": config})).kind == "classifier"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"config.json": {"architectures": ["Qwen2VLForConditionalGeneration"]}}, "is no reward model"),
        ({"config.json": {"architectures": ["BertForSequenceClassification"]}}, "2 labels"),
        ({"config.json": {"model_type": "new_vl"}, "value_head.safetensors": HEAD}, "Give --template"),
        ({"config.json": "{"}, "is not JSON"),
    ],
)
def test_what_is_no_reward_model_is_refused(tmp_path: Path, files: dict[str, object], words: str) -> None:
    with pytest.raises(UniDPOError, match=words):
        find_reward_checkpoint(write(tmp_path, files))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match="no such folder"):
        find_reward_checkpoint(RewardModelOptions(tmp_path / "nowhere"))


@pytest.mark.parametrize("content", ["", HEAD[:40], HEAD + "x", weights("summary.weight", "summary.bias")])
def test_a_value_head_that_cannot_be_loaded_is_refused(tmp_path: Path, content: str) -> None:
    options = write(tmp_path, {"config.json": {"model_type": "qwen2_vl"}, "value_head.safetensors": content})
    with pytest.raises(UniDPOError, match=r"value_head\.safetensors: (is damaged|holds no value head)"):
        find_reward_checkpoint(options)
