"""The precisions of the GPU recipes, on a CPU: bfloat16, and 4-bit base weights under an adapter."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

RECIPES = Path(__file__).parents[2] / "examples" / "uni_dpo"
Train = Callable[..., list[dict[str, Any]]]


def losses(log: list[dict[str, Any]]) -> list[float]:
    return [line["loss"] for line in log if "loss" in line]


@pytest.mark.parametrize("finetuning", [{"finetuning_type": "full"}, {"finetuning_type": "lora", "lora_rank": 4}])
def test_bfloat16_follows_float32(train: Train, finetuning: dict[str, Any]) -> None:
    """8 bits of mantissa in the matrix products: near to float32 in every step, and not the same."""
    single = losses(train(**finetuning))
    half = losses(train(**finetuning, bf16=True))
    assert half == pytest.approx(single, rel=0.05)
    assert half != single


def test_the_qlora_recipe_trains_over_four_bit_weights(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    bitsandbytes = pytest.importorskip("bitsandbytes", minversion="0.50", reason="4-bit weights need it")
    recipe = yaml.safe_load((RECIPES / "Qwen2_VL_2B_uni_dpo_qlora.yaml").read_text(encoding="utf-8"))
    of_the_recipe = ("quantization_method", "quantization_bit", "upcast_layernorm", "finetuning_type", "lora_rank",
                     "lora_target", "bf16")  # fmt: skip
    quantized: set[tuple[str, float]] = set()
    forward = bitsandbytes.nn.Linear4bit.forward

    def recorded(layer: Any, *arguments: Any) -> Any:
        weight = layer.weight
        bits = 8 * weight.numel() * weight.element_size() / (layer.in_features * layer.out_features)
        quantized.add((weight.quant_state.quant_type, bits))
        return forward(layer, *arguments)

    monkeypatch.setattr(bitsandbytes.nn.Linear4bit, "forward", recorded)
    settings = {name: recipe[name] for name in of_the_recipe} | {"num_train_epochs": 3}
    found = losses(train(**settings))
    assert quantized == {("nf4", 4.0)}
    whole = losses(train(**settings | {"quantization_bit": None, "quantization_method": "bnb"}))
    assert found[0] == pytest.approx(whole[0], rel=0.1)
    assert found[-1] < found[0]
