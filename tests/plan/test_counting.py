"""A plan's numbers against PyTorch's own: parameters of the modules, operations by its counter, bytes by what is alive.

`benchmarks/count_step.py` runs the modules of transformers, LlamaFactory's loss and ours on meta tensors; its own check
against a real CPU is `benchmarks/count.py --check`.
"""

import sys
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.plan.counting import StepShape, adapter_weights, step_bytes, step_flops
from uni_dpo.plan.shapes import ModelShape, read_shape, shape_of

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
KNOWN = files("uni_dpo.plan").joinpath("models.json")


def known(name: str, **changes: Any) -> dict[str, Any]:
    import json

    return json.loads(KNOWN.read_text(encoding="utf-8"))[name] | changes


def shallow(name: str) -> dict[str, Any]:
    """Real widths, three layers of the language model and two of the tower."""
    config = known(name)
    text = config.get("text_config", config)
    text["num_hidden_layers"] = 3
    config["vision_config"] |= {"depth": 2}
    for levels in ("deepstack_visual_indexes", "fullatt_block_indexes"):
        if levels in config["vision_config"]:
            config["vision_config"][levels] = [1]
    return config


@pytest.mark.parametrize(
    "name", ["qwen2-vl-2b-instruct", "qwen2-vl-7b-instruct", "qwen2.5-vl-7b-instruct", "qwen3-vl-8b-instruct"]
)
def test_every_parameter_is_counted(name: str) -> None:
    import torch
    from count_step import build

    policy: Any = build(shallow(name), torch.bfloat16)[0]
    shape = shape_of(shallow(name))
    assert shape.parameters == sum(weight.numel() for weight in policy.parameters())
    assert shape.vision is not None
    assert shape.vision.parameters == sum(weight.numel() for weight in policy.model.visual.parameters())


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_parameter_of_a_text_model_is_counted(family: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    described = {"vocab_size": 501, "hidden_size": 48, "intermediate_size": 101, "num_hidden_layers": 2}
    described |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": family == "qwen3"}
    config = AutoConfig.for_model(family, **described)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    assert shape_of(config.to_dict()).parameters == sum(weight.numel() for weight in model.parameters())


SETTINGS: list[tuple[str, str, dict[str, Any], dict[str, Any]]] = [
    ("qwen2-vl-2b-instruct", "ours", {}, {}),
    ("qwen2-vl-2b-instruct", "stock", {}, {}),
    ("qwen2-vl-2b-instruct", "ours", {"lora": 8}, {}),
    ("qwen2-vl-2b-instruct", "stock", {"lora": 8}, {}),
    ("qwen2-vl-2b-instruct", "ours", {"checkpointing": True}, {"image": 1024}),
    ("qwen2-vl-2b-instruct", "stock", {"checkpointing": True}, {}),
    ("qwen2-vl-7b-instruct", "ours", {}, {"answers": 2, "image": 1024}),
    ("qwen2-vl-7b-instruct", "stock", {}, {"answers": 3, "answer": 64}),
    ("qwen2.5-vl-7b-instruct", "ours", {"reference": False}, {"answers": 5}),
    ("qwen2.5-vl-7b-instruct", "stock", {}, {"answers": 2, "image": 1024}),
    ("qwen3-vl-8b-instruct", "ours", {}, {"answers": 6, "answer": 320}),
    ("qwen3-vl-8b-instruct", "stock", {}, {"answers": 2, "answer": 320}),
]


def planned(step: Any, variant: str, model: ModelShape) -> tuple[StepShape, float]:
    """The same step as a plan describes it, and the bytes of its gradients."""
    shape = StepShape(
        questions=step.questions,
        answers=step.answers,
        pairs=step.pairs,
        prompt=step.prompt,
        image=step.image,
        answer=step.answer,
        shared=variant == "ours",
        reference=step.reference,
        full=not step.lora,
        lora_rank=step.lora,
        checkpointing=step.checkpointing,
    )
    trained = adapter_weights(model.text, step.lora) * 4 if step.lora else model.text.parameters * 2
    return shape, trained


@pytest.mark.parametrize(("name", "variant", "more", "sizes"), SETTINGS)
def test_operations_and_peak_are_those_of_a_run_without_weights(
    name: str, variant: str, more: dict[str, Any], sizes: dict[str, Any]
) -> None:
    from count_step import Step, count

    step = Step(**{"questions": 1, "answers": 4, "image": 256, "words": 48, "answer": 192} | sizes | more)
    flops, peak = count(shallow(name), step, variant)
    model = shape_of(shallow(name))
    shape, gradients = planned(step, variant, model)
    assert step_flops(model, shape) == pytest.approx(flops, rel=0.01 if step.lora else 1e-5)
    assert step_bytes(model, shape, gradients).peak == pytest.approx(peak, rel=0.15)


def test_what_each_gpu_holds_with_zero() -> None:
    """Models of 80 and 40 bytes, gradients of 60, an optimizer of 360, a step of 40 beyond its gradients; four GPUs.

    120 + 60 + 360 + 40; 120 + 15 + 90 + 40; and 30, a gathered layer of 10, 15 + 90 + 40.
    """
    from count import Held

    held = Held(weights=80, reference=40, gradients=60, optimizer=360, largest=10)
    assert [held.on_each(4, stage, 100) for stage in (0, 2, 3)] == [580, 265, 185]


def test_hand_worked_numbers() -> None:
    """One text layer of width 4, two heads, and a vocabulary of 10: 3 prompt tokens, two answers of 2 tokens.

    Linear maps: q and o 4·4 each, k and v 4·2 each, MLP 3·4·6 = 72 → 120 weights, so 2 · 8 tokens · 120 = 1,920
    operations forward (7 tokens are padded to 8). Attention: 4 · 4 · (3² + 5·8) = 784. Head: 2 · 4 · 40 = 320; means of
    the logits 2 · 2 · 40 = 160. Backward: twice the linear maps and the head, 2.5 times the attention.
    """
    config = {"model_type": "llama", "vocab_size": 10, "hidden_size": 4, "intermediate_size": 6}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    model = shape_of(config)
    step = StepShape(1, 2, 1, prompt=3, image=0, answer=2, reference=False)
    assert step_flops(model, step) == 3 * 1920 + 3.5 * 784 + 3 * 320 + 160
    with_reference = replace(step, reference=True)
    assert step_flops(model, with_reference) - step_flops(model, step) == 1920 + 784 + 320


def test_an_unknown_model_says_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(UniDPOError, match=r"no folder with a config\.json.*qwen2-vl-7b-instruct"):
        read_shape(str(tmp_path))
    with pytest.raises(UniDPOError, match="this is 'gpt2'"):
        shape_of({"model_type": "gpt2"})
    with pytest.raises(UniDPOError, match="has no hidden_size"):
        shape_of({"model_type": "llama", "vocab_size": 3, "num_hidden_layers": 1, "num_attention_heads": 1})


@pytest.mark.slow
@pytest.mark.parametrize("variant", [pytest.param("ordinary", marks=pytest.mark.nightly), "shared_prefix"])
@pytest.mark.parametrize(
    "sizes",
    [
        {"answers": 2, "image_tokens": 576, "answer": 128},
        pytest.param({"answers": 3, "image_tokens": 576, "answer": 128}, marks=pytest.mark.nightly),
        pytest.param({"answers": 4, "image_tokens": 256, "answer": 192}, marks=pytest.mark.nightly),
        pytest.param({"answers": 3, "image_tokens": 1024, "answer": 192}, marks=pytest.mark.nightly),
        pytest.param(
            {"answers": 3, "image_tokens": 1024, "answer": 192, "checkpointing": True}, marks=pytest.mark.nightly
        ),
    ],
    ids=str,
)
def test_the_peak_is_the_one_that_a_cpu_shows(variant: str, sizes: dict[str, Any]) -> None:
    from pair_step import peak_memory
    from pair_step_models import SHAPES, Setting

    base = {"shape": "small", "device": "cpu", "dtype": "float32", "vocabulary": 32000, "questions": 1, "prompt": 48}
    base |= {"repeats": 1, "checkpointing": False, "liger": False, "attention": "sdpa"}
    setting = Setting(**base | sizes)
    measured = peak_memory(variant, setting, warm=True)
    text, vision = SHAPES["small"]
    model = shape_of({"model_type": "qwen2_vl", **text, "vocab_size": 32000, "vision_config": vision})
    shape = StepShape(
        questions=setting.questions,
        answers=setting.answers,
        pairs=setting.pairs,
        prompt=setting.image_tokens + 2 + setting.prompt,
        image=setting.image_tokens,
        answer=setting.answer,
        shared=variant == "shared_prefix",
        bytes=4,
        checkpointing=setting.checkpointing,
    )
    assert step_flops(model, shape) == pytest.approx(measured["flops"], rel=1e-4)
    assert step_bytes(model, shape, model.text.parameters * 4).peak == pytest.approx(measured["bytes"], rel=0.15)
