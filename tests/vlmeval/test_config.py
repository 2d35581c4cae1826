"""A configuration file is understood or refused with the place of the fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.vlmeval.config import Benchmark, read_config
from uni_dpo.vlmeval.settings import ModelSettings

MODEL = {"class": "Qwen2VLChat", "model_path": "somewhere"}


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(model: Any, data: Any) -> Path:
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"model": model, "data": data}), encoding="utf-8")
        return path

    return write


def test_the_overlays_config_is_understood() -> None:
    config = read_config(Path(__file__).parents[2] / "VLMEvalKit" / "config.json")
    assert config.models == {"Qwen2-VL-2B": ModelSettings("Qwen/Qwen2-VL-2B")}, "the published one sets no limits"
    assert len(config.benchmarks) == 9
    assert config.benchmarks["MME"] == Benchmark("MME", "MME", "ImageYORNDataset")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_are_refused(write: Any, number: float) -> None:
    with pytest.raises(UniDPOError, match=r"temperature is .*which is not a finite number"):
        read_config(write({"m": {**MODEL, "temperature": number}}, {"POPE": {}}))


def test_own_data_and_names_after_data(write: Any, tmp_path: Path) -> None:
    path = write({"m": MODEL}, {"mine": {"path": "mine.tsv", "type": "yes/no", "prompt": "plain"}, "POPE": {}})
    config = read_config(path, ["mine", "OCRBench"], {"backend": "vllm"})
    assert config.benchmarks == {
        "mine": Benchmark("mine", "mine", path=tmp_path / "mine.tsv", kind="Y/N", prompt="plain"),
        "OCRBench": Benchmark("OCRBench", "OCRBench"),
    }
    assert config.models["m"].backend == "vllm"


def test_vlmevalkits_own_vllm_flag_is_understood() -> None:
    assert ModelSettings.parse({**MODEL, "use_vllm": True}).backend == "vllm"
    assert ModelSettings.parse({**MODEL, "use_vllm": False}).backend == "transformers"


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"m": {**MODEL, "class": "Qwen3Chat"}}, {"POPE": {}}, "model 'm': unknown class 'Qwen3Chat'"),
        ({"m": {**MODEL, "min_pixel": 1}}, {"POPE": {}}, "unknown key 'min_pixel'; did you mean 'min_pixels'"),
        ({"m": {**MODEL, "max_pixels": "many"}}, {"POPE": {}}, "max_pixels is 'many', which is not int or null"),
        ({"m": {**MODEL, "do_sample": 1}}, {"POPE": {}}, "do_sample is 1, which is not true or false"),
        ({"m": {**MODEL, "seed": True}}, {"POPE": {}}, "seed is True, which is not a whole number"),
        ({"m": {**MODEL, "backend": "jax"}}, {"POPE": {}}, "backend is 'jax'; it can be transformers, vllm, openai"),
        ({"m": {**MODEL, "backend": "openai"}}, {"POPE": {}}, "backend openai needs base_url"),
        ({"m": {**MODEL, "min_pixels": 9, "max_pixels": 4}}, {"POPE": {}}, "min_pixels 9 is above max_pixels 4"),
        ({"m": {**MODEL, "max_new_tokens": 0}}, {"POPE": {}}, "must be at least 1"),
        ({"m": {"class": "Qwen2VLChat"}}, {"POPE": {}}, "model 'm': no model_path"),
        ({"m": "somewhere"}, {"POPE": {}}, "expected an object, found 'somewhere'"),
        ({"a/b": MODEL}, {"POPE": {}}, "can hold no slash"),
        ({}, {"POPE": {}}, 'nothing under "model"'),
        ({"m": MODEL}, {}, 'nothing under "data"'),
        ({"m": MODEL}, [], 'no object under "data"'),
        ({"m": MODEL}, {"x": {"pth": "a.tsv"}}, "data 'x': unknown key 'pth'; did you mean 'path'"),
        ({"m": MODEL}, {"x": {"path": 3}}, "path is 3, which is not a text"),
        ({"m": MODEL}, {"x": {"path": "a.tsv", "type": "essay"}}, "type is 'essay'; it can be MCQ, yes/no or VQA"),
        ({"m": MODEL}, {"x": {"prompt": "loud"}}, "prompt is 'loud'; it can be benchmark or plain"),
        ({"m": MODEL}, {"../x": {}}, "no leading dot"),
    ],
)
def test_faults_are_named(write: Any, model: Any, data: Any, message: str) -> None:
    with pytest.raises(UniDPOError, match=message):
        read_config(write(model, data))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match=r"cannot read the configuration .*: No such file"):
        read_config(tmp_path / "gone.json")
    (tmp_path / "half.json").write_text("{", encoding="utf-8")
    with pytest.raises(UniDPOError, match=r"half.json is not JSON"):
        read_config(tmp_path / "half.json")
