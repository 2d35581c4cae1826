"""A configuration file is understood or refused with the place of the fault."""

import json
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.vlmeval.config import Benchmark, ModelSettings, read_config

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
    with pytest.raises(UniDPOError, match=r"temperature: .* is not a finite number"):
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


def test_the_younger_class_has_its_own_defaults_and_answers() -> None:
    older, younger = (ModelSettings.parse({**MODEL, "class": name}) for name in ("Qwen2VLChat", "Qwen3VLChat"))
    assert (younger.max_new_tokens, younger.top_p, younger.top_k) == (32768, 0.8, 20)
    assert ModelSettings.parse({**MODEL, "class": "Qwen3VLChat", "top_k": 3}).top_k == 3
    assert "class_name" not in older.identity()  # answers that were given before there were two
    assert younger.identity()["class_name"] == "Qwen3VLChat"


@pytest.mark.parametrize(
    ("model", "data", "message"),
    [
        ({"m": {**MODEL, "class": "Qwen3Chat"}}, {"POPE": {}}, "model.m: unknown class 'Qwen3Chat'"),
        (
            {"m": {**MODEL, "min_pixel": 1}},
            {"POPE": {}},
            "config.json:1: model.m.min_pixel: unknown setting; did you mean 'min_pixels'",
        ),
        ({"m": {**MODEL, "max_pixels": "many"}}, {"POPE": {}}, "max_pixels: a whole number is expected, not 'many'"),
        ({"m": {**MODEL, "do_sample": 1}}, {"POPE": {}}, "do_sample: true or false is expected, not 1"),
        ({"m": {**MODEL, "seed": True}}, {"POPE": {}}, "seed: a whole number is expected, not True"),
        ({"m": {**MODEL, "backend": "jax"}}, {"POPE": {}}, "backend: one of transformers, vllm, openai; not 'jax'"),
        ({"m": {**MODEL, "backend": "openai"}}, {"POPE": {}}, "model.m.base_url: backend openai needs it"),
        ({"m": {**MODEL, "min_pixels": 9, "max_pixels": 4}}, {"POPE": {}}, "min_pixels: 9 is above max_pixels 4"),
        ({"m": {**MODEL, "max_new_tokens": 0}}, {"POPE": {}}, "max_new_tokens: 0 is out of range; it can be 1 or more"),
        ({"m": {"class": "Qwen2VLChat"}}, {"POPE": {}}, "model.m.model_path: this setting is required"),
        ({"m": "somewhere"}, {"POPE": {}}, "a mapping of settings is expected, not 'somewhere'"),
        ({"a/b": MODEL}, {"POPE": {}}, "can hold no slash"),
        ({"a\nb": MODEL}, {"POPE": {}}, "can hold no slash, no line break"),
        ({}, {"POPE": {}}, "model: nothing stands under it"),
        ({"m": MODEL}, {}, "data: nothing stands under it"),
        ({"m": MODEL}, [], "data: a mapping is expected, not "),
        ({"m": MODEL}, {"x": {"pth": "a.tsv"}}, "data.x.pth: unknown setting; did you mean 'path'"),
        ({"m": MODEL}, {"x": {"path": 3}}, "path: a path is expected, not 3"),
        ({"m": MODEL}, {"x": {"path": "a.tsv", "type": "essay"}}, "type: one of MCQ, Y/N, VQA, yes/no; not 'essay'"),
        ({"m": MODEL}, {"x": {"prompt": "loud"}}, "prompt: one of benchmark, plain; not 'loud'"),
        ({"m": MODEL}, {"../x": {}}, "no leading dot"),
    ],
)
def test_faults_are_named(write: Any, model: Any, data: Any, message: str) -> None:
    with pytest.raises(UniDPOError, match=message):
        read_config(write(model, data))


def test_a_file_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match=r"gone.json: there is no such configuration file"):
        read_config(tmp_path / "gone.json")
    (tmp_path / "half.json").write_text("{", encoding="utf-8")
    with pytest.raises(UniDPOError, match=r"half.json:1: not valid JSON"):
        read_config(tmp_path / "half.json")


def test_nested_settings_of_the_command_line_take_the_place_of_the_files(write: Any) -> None:
    path = write({"Qwen2.5-VL": MODEL}, {"POPE": {}})
    given = ["model.Qwen2.5-VL.max_new_tokens=64", "data.mine.path=mine.tsv"]
    config = read_config(path, given=given)
    assert config.models["Qwen2.5-VL"].max_new_tokens == 64
    assert config.benchmarks["mine"].path == path.parent / "mine.tsv"
    with pytest.raises(UniDPOError, match=r"^command line: model.Qwen2.5-VL.max_tokens: unknown setting; did you mean"):
        read_config(path, given=["model.Qwen2.5-VL.max_tokens=64"])


def test_yaml_is_read_too_and_all_faults_are_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "eval.yaml"
    path.write_text("model:\n  m:\n    model_pth: x\n    top_p: 2\ndata:\n  POPE: {clas: y}\n")
    with pytest.raises(UniDPOError) as refused:
        read_config(path)
    lines = [line.removeprefix(f"{path}:").partition(": ")[0::2] for line in str(refused.value).splitlines()]
    assert [(int(number), text.partition(":")[0]) for number, text in lines] == [
        (3, "model.m.model_pth"),
        (4, "model.m.top_p"),
        (2, "model.m.model_path"),
        (6, "data.POPE.clas"),
    ]
