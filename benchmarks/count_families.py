"""Operations of a step on one pair in one sequence against two, for every family of docs/models.md, without weights.

    python benchmarks/count_families.py              all that the installed transformers has
    python benchmarks/count_families.py gemma3       some

Qwen-VL has the sizes of src/uni_dpo/plan/models.json, every other family those that transformers gives a configuration
with nothing set, which are those of a published model; Gemma 3 has its published tower.
A pair has an image (the families' own size; 672 x 672 or 768 x 768 where it is cut into tiles; 576 tokens for Qwen and
GLM) and 48 words, or 512 words, and two answers of 192 tokens. Vision is frozen as LlamaFactory freezes it.
"""

import argparse
import json
import logging
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from count_step import Step, build, count
from count_towers import tokens_per_image
from transformers import CONFIG_MAPPING

from uni_dpo.shared_prefix.families import GRID_FAMILIES, TEXT_FAMILIES, TOWER_FAMILIES

FAMILIES = (*GRID_FAMILIES, *TOWER_FAMILIES, *TEXT_FAMILIES)
MODELS = json.loads((Path(__file__).parents[1] / "src/uni_dpo/plan/models.json").read_text(encoding="utf-8"))
SIGLIP = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
CONFIGS = {
    **{shape["model_type"]: shape for shape in MODELS.values()},
    "gemma3": {"vision_config": {**SIGLIP, "image_size": 896, "patch_size": 14}},
    "gemma4": {"vision_config": {}},
    "glm4v": {
        "text_config": {
            "rope_parameters": {"rope_type": "default", "mrope_section": [8, 12, 12], "partial_rotary_factor": 0.5}
        }
    },
}
"""What is set of a family's configuration."""


def config_of(family: str) -> dict[str, Any]:
    """The configuration whose sizes are counted."""
    return {"model_type": family, **CONFIGS.get(family, {})}


def step_of(family: str) -> Step:
    """The pair that is counted."""
    if family in TEXT_FAMILIES:
        return Step(1, 2, 0, 512, 192)
    if family in GRID_FAMILIES:
        return Step(1, 2, 576, 48, 192)
    with torch.no_grad():
        return Step(1, 2, tokens_per_image(build(config_of(family), torch.bfloat16)[1]), 48, 192)


def print_table(families: Iterable[str]) -> None:
    """Print a line for every family, in Markdown."""
    print("| architecture | prompt tokens | TFLOP, two sequences | one | |")
    print("| --- | ---: | ---: | ---: | --- |")
    for family in families:
        step = step_of(family)
        two, one = (count(config_of(family), step, variant)[0] for variant in ("stock", "ours"))
        print(f"| `{family}` | {step.prompt:,} | {two / 1e12:.1f} | {one / 1e12:.1f} | ÷ {two / one:.2f} |", flush=True)


def main() -> None:
    """Parse, count, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*")
    options = parser.parse_args()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    print_table(options.families or [family for family in FAMILIES if family in CONFIG_MAPPING])


if __name__ == "__main__":
    main()
