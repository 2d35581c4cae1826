"""The ratios of docs/models.md are those that are counted.

Where a plan knows the family its formulas count, which `tests/plan/test_counting.py` holds to PyTorch's counter. All
others are counted at a few layers: each layer of a kind takes as many operations as the next, so the sum follows.
"""

import copy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.plan.counting import StepShape, step_flops
from uni_dpo.plan.shapes import shape_of

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))
PLANNED = ("llama", "mistral", "qwen2", "qwen3", "qwen2_vl", "qwen2_5_vl", "qwen3_vl")
COUNTED = ("llava", "llava_next", "llava_onevision", "internvl", "gemma3", "gemma3_text", "gemma4", "glm4v")
NIGHTLY = ("qwen3_5",)
"""The loops of its linear attention take a while even at few layers."""
NEWEST = "minicpmv4_6"
"""Counted whole, by `make test-head`: the oldest transformers that has it is newer than that of `make test`."""

Config = dict[str, Any]


def documented() -> dict[str, str]:
    """The ratio in the table, by `model_type`."""
    lines = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    rows = [row.split(" | ") for row in lines if row.startswith("| ") and "÷" in row]
    return {row[1].strip("`"): row[-1].removesuffix(" |") for row in rows}


def full_config(family: str) -> Config:
    """What is counted, with all that transformers adds."""
    import count_families
    from transformers import AutoConfig

    found: Config = AutoConfig.for_model(**copy.deepcopy(count_families.config_of(family))).to_dict()
    return found


def cut(config: Config, layers: int, blocks: int) -> Config:
    """The same model with so many layers, and so many blocks in its tower."""
    config = copy.deepcopy(config)
    text, vision = config.get("text_config", config), config.get("vision_config")
    text["num_hidden_layers"] = layers
    if text.get("layer_types"):
        text["layer_types"] = text["layer_types"][:layers]
    if vision:
        vision["depth" if "depth" in vision else "num_hidden_layers"] = blocks
    return config


def summed(config: Config, counted: Callable[[Config], float]) -> float:
    """What `counted` would give for the whole model, from one with as many layers as its kinds repeat after."""
    text, vision = config.get("text_config", config), config.get("vision_config") or {}
    layers, blocks = text["num_hidden_layers"], vision.get("depth", vision.get("num_hidden_layers", 1))
    kinds = text.get("layer_types") or ["alike"] * layers
    period = next(n for n in range(1, layers + 1) if all(kinds[at] == kinds[at % n] for at in range(layers)))
    once = counted(cut(config, period, 1))
    more = counted(cut(config, 2 * period, 1)) - once
    times, rest = divmod(layers, period)
    total = counted(cut(config, rest, 1)) + times * more if rest else once + (times - 1) * more
    if vision:
        total += (blocks - 1) * (counted(cut(config, period, 2)) - once)
    return total


def test_every_row_is_held_here() -> None:
    assert documented().keys() == {*PLANNED, *COUNTED, *NIGHTLY, NEWEST}


@pytest.mark.parametrize("family", PLANNED)
def test_a_planned_family_has_the_ratio_of_its_formulas(family: str) -> None:
    import count_families

    step = count_families.step_of(family)
    model = shape_of(full_config(family))
    two, one = (
        step_flops(model, StepShape(1, 2, 1, prompt=step.prompt, image=step.image, answer=step.answer, shared=shared))
        for shared in (False, True)
    )
    assert f"÷ {two / one:.2f}" == documented()[family]


@pytest.mark.slow
@pytest.mark.parametrize("family", [*COUNTED, *(pytest.param(name, marks=pytest.mark.nightly) for name in NIGHTLY)])
def test_any_other_family_has_the_ratio_that_its_layers_add_up_to(family: str) -> None:
    import count_families
    from count_step import count

    config = full_config(family)
    step = count_families.step_of(family)
    two, one = (summed(config, lambda part, way=way: count(part, step, way)[0]) for way in ("stock", "ours"))
    assert f"÷ {two / one:.2f}" == documented()[family]


def test_the_newest_family_has_the_ratio_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    import count_families
    import transformers

    if NEWEST not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {NEWEST}")
    count_families.print_table([NEWEST])
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"| {documented()[NEWEST]} |")
