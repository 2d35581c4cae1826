"""Every row of the documented table of models trains, resumes and evaluates on a tiny random checkpoint.

Its recipe trains too, and fits what the row says.
"""

import importlib.util
import inspect
import json
import math
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from uni_dpo.settings.reading import read_mapping

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "examples" / "uni_dpo" / "families"
IMAGE_SIDE = 768
"""Of a square with as many pixels as LlamaFactory leaves an image."""


@dataclass(frozen=True)
class Family:
    """One row of the table."""

    recipe: Path
    architecture: str
    template: str
    image_token: str | None
    tokens: str
    model: str

    @property
    def most_tokens(self) -> int:
        """Of an image."""
        sides = re.match(r"height/(\d+) × width/(\d+)", self.tokens)
        if sides:
            return IMAGE_SIDE // int(sides[1]) * (IMAGE_SIDE // int(sides[2]))
        first = re.search(r"[\d,]+", self.tokens)
        return int(first[0].replace(",", "")) if first else 0

    @property
    def special_tokens(self) -> str:
        """Which ones the family's tokenizer has."""
        if self.architecture in ("gemma3", "gemma4", "internvl", "glm4v", "llava_onevision", "minicpmv4_6"):
            return self.architecture
        if self.template in ("llama3", "gemma"):
            return self.template
        return "qwen" if "qwen" in self.architecture else "llama"


def documented() -> list[Family]:
    """The rows of docs/models.md."""
    lines = (ROOT / "docs" / "models.md").read_text(encoding="utf-8").replace(r"\|", "¦").splitlines()
    rows = [
        [cell.strip().strip("`").replace("¦", "|") for cell in line.split("|")[1:-1]] for line in lines if "|" in line
    ]
    return [
        Family(
            recipe=ROOT / "docs" / row[0].partition("](")[2].rstrip(")"),
            architecture=row[1],
            template=row[2],
            image_token=row[3] if row[3] != "–" else None,
            tokens=row[4],
            model=row[5],
        )
        for row in rows[2:]
        if len(row) == 7
    ]


FAMILIES = documented()
TRAINED = {
    "llava_onevision": ("vision_tower",),
    "glm4v": ("visual.embeddings", "visual.downsample", "visual.post_"),
}
"""Parts of the vision tower that LlamaFactory trains although it says that it freezes the tower."""


def test_the_table_names_every_family_that_is_promised() -> None:
    promised = {"llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2", "llama", "mistral"}
    promised |= {"gemma3", "internvl", "llava_onevision", "glm4v", "qwen3_5", "gemma4"}
    assert {family.architecture for family in FAMILIES} >= promised


def test_every_row_has_a_recipe_of_its_own() -> None:
    """They differ in what the row says, and those for text in the values published for text."""
    of_row = ("model_name_or_path", "template", "cutoff_len", "output_dir")
    of_text = ("dataset_dir", "dataset", "learning_rate", "uni_dpo_tau_ref", "uni_dpo_tau_good")
    recipes = [family.recipe.resolve() for family in FAMILIES]
    assert sorted(recipes) == sorted(RECIPES.glob("*.yaml"))
    alike: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for family in FAMILIES:
        recipe = dict(read_mapping(family.recipe))
        assert (recipe["model_name_or_path"], recipe["template"]) == (family.model, family.template)
        assert recipe["output_dir"] == f"saves/{family.recipe.stem}/uni_dpo_lora"
        assert f"uni-dpo train examples/uni_dpo/families/{family.recipe.name} " in family.recipe.read_text()
        assert recipe["cutoff_len"] >= family.most_tokens + 1024
        alike[family.image_token is None].append({name: recipe[name] for name in recipe if name not in of_row})
    for recipes_alike in alike.values():
        assert all(recipe == recipes_alike[0] for recipe in recipes_alike)
    text, images = alike[True][0], alike[False][0]
    assert text.keys() == images.keys()
    assert {name for name in text if text[name] != images[name]} == {*of_text}


@pytest.mark.parametrize("architecture", ["llava_next", "llava_onevision"])
def test_tiles_make_at_most_as_many_tokens_as_the_row_says(architecture: str) -> None:
    """Of all images that LlamaFactory leaves as large as they are, by the processor of transformers."""
    import transformers

    name, side, pins = {
        "llava_next": ("LlavaNextProcessor", 336, [(1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]),
        "llava_onevision": ("LlavaOnevisionProcessor", 384, [(a, b) for a in range(1, 7) for b in range(1, 7)]),
    }[architecture]
    kind = getattr(transformers, name)
    processor = kind.__new__(kind)
    processor.vision_aspect_ratio, processor.num_additional_image_tokens = "anyres_max_9", 0
    processor.patch_size, processor.num_image_tokens = 14, (side // 14) ** 2
    processor.image_processor = type("Pins", (), {"image_grid_pinpoints": [[a * side, b * side] for a, b in pins]})
    heights = (*range(112, 3000, 3), 1163)
    most = max(processor._get_number_of_features(high, IMAGE_SIDE**2 // high, side, side) for high in heights)
    assert most == most_tokens_of(architecture)


def test_slices_make_at_most_as_many_tokens_as_the_row_says() -> None:
    """Of all images that LlamaFactory leaves as large as they are, and the whole image before them."""
    import transformers

    if not hasattr(transformers, "MiniCPMV4_6ImageProcessor"):
        pytest.skip(f"transformers {transformers.__version__} has no MiniCPM-V 4.6")
    processor = transformers.MiniCPMV4_6ImageProcessor()
    side, merged = processor.scale_resolution, {"patch_size": processor.patch_size}
    if "downsample_mode" in inspect.signature(processor.find_best_resize).parameters:  # transformers 5.8 has none
        merged["downsample_mode"] = "16x"

    def tokens(size: tuple[int, int]) -> int:
        grid = processor.get_sliced_grid(size, processor.max_slice_nums, side)
        whole = math.prod(processor.find_best_resize(size, side, allow_upscale=grid is None, **merged))
        slices = math.prod(processor.get_refine_size(size, grid, side, allow_upscale=True, **merged)) if grid else 0
        return (whole + slices) // (16 * processor.patch_size**2)

    assert max(tokens((high, IMAGE_SIDE**2 // high)) for high in range(112, 3000)) == most_tokens_of("minicpmv4_6")


def most_tokens_of(architecture: str) -> int:
    return next(family.most_tokens for family in FAMILIES if family.architecture == architecture)


def checkpoints() -> Any:
    """The module beside this one."""
    spec = importlib.util.spec_from_file_location("checkpoints", Path(__file__).with_name("checkpoints.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def text_data(pair_data: Any) -> Any:
    """The dataset `texts`: the mixed pairs without their images."""
    rows = json.loads((pair_data.folder / "mixed.json").read_text())
    texts = [row | {"instruction": row["instruction"].replace("<image>", ""), "images": []} for row in rows]
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    pair_data.add("texts", [{name: row[name] for name in row if name != "images"} for row in texts], columns=columns)
    return pair_data


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: f"{family.architecture}-{family.template}")
def test_uni_dpo_trains_resumes_and_evaluates(
    family: Family,
    text_data: Any,
    train: Callable[..., list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from llamafactory.data.collator import MultiModalDataCollatorForSeq2Seq
    from safetensors.torch import load_file

    from uni_dpo.llamafactory.pair_forward import PairForward

    passes: list[Any] = []
    fast = PairForward.__call__
    monkeypatch.setattr(PairForward, "__call__", lambda self, *a, **k: passes.append(self) or fast(self, *a, **k))
    image_tokens = pixels = 0
    collate = MultiModalDataCollatorForSeq2Seq.__call__

    def counting(self: Any, features: Any) -> Any:
        nonlocal image_tokens, pixels
        batch = collate(self, features)
        if family.image_token:
            image_tokens += int((batch["input_ids"] == self.tokenizer.convert_tokens_to_ids(family.image_token)).sum())
            pixels += batch["pixel_values"].numel()
        return batch

    monkeypatch.setattr(MultiModalDataCollatorForSeq2Seq, "__call__", counting)
    checkpoint = checkpoints().write_checkpoint(family.architecture, family.special_tokens, tmp_path / "checkpoint")
    settings = {
        "model_name_or_path": str(checkpoint),
        "template": family.template,
        "dataset": "mixed" if family.image_token else "texts",
        "cutoff_len": 1024,
        "val_size": 4,
        "eval_strategy": "epoch",
        "learning_rate": 1e-4,
    }
    out = tmp_path / "out"
    log = train(**settings, output_dir=str(out), save_strategy="steps", save_steps=2)
    assert (image_tokens > 0) == (pixels > 0) == (family.image_token is not None)
    steps = [line for line in log if "loss" in line]
    assert len(steps) == 3
    for line in steps:
        assert math.isfinite(line["loss"])
        assert 0.5 < line["uni_dpo/w_qual"] < 1
        assert 0 < line["uni_dpo/w_perf"] < 1
        assert line["grad_norm"] > 0
    assert steps[0]["rewards/margins"] == pytest.approx(0, abs=1e-5), "the reference is not the model before training"
    assert steps[-1]["rewards/margins"] != 0
    evaluation = next(line for line in log if "eval_loss" in line)
    assert math.isfinite(evaluation["eval_loss"])
    assert "eval_uni_dpo/w_perf" in evaluation
    before, after = (load_file(next(folder.glob("*.safetensors"))) for folder in (checkpoint, out))
    head = next(name for name in before if name.endswith("lm_head.weight"))
    assert not torch.equal(before[head], after[head])
    vision = [name for name in before if "visual." in name or "vision_tower" in name]
    frozen = [name for name in vision if not any(part in name for part in TRAINED.get(family.architecture, ()))]
    assert bool(vision) == (family.image_token is not None)
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not all(torch.equal(before[name], after[name]) for name in {*vision} - {*frozen}) or vision == frozen

    shutil.rmtree(out / "checkpoint-3")
    resumed = train(**settings, output_dir=str(out), resume_from_checkpoint=str(out / "checkpoint-2"))
    assert_same(resumed, log)
    again = load_file(next(out.glob("*.safetensors")))
    assert all(torch.allclose(again[name], after[name], atol=1e-5) for name in after)
    assert passes, "it ran two sequences per pair"
    passes.clear()
    ordinary = train(**settings, output_dir=str(tmp_path / "ordinary"), pair_forward="ordinary")
    assert not passes
    assert_same(ordinary, log)

    recipe = dict(read_mapping(family.recipe))
    here = {"gradient_accumulation_steps": 2, "max_steps": 1, "bf16": False, "plot_loss": False, "cutoff_len": 1024}
    here |= {name: settings[name] for name in ("model_name_or_path", "dataset")}
    here |= {"dataset_dir": str(text_data.folder), "output_dir": str(tmp_path / "recipe")}
    step, _ = train(**recipe | here | {"preprocessing_num_workers": 1})
    assert 0 < step["grad_norm"] < math.inf
    assert passes, "its recipe ran two sequences per pair"
    adapters = load_file(tmp_path / "recipe" / "adapter_model.safetensors")
    assert any(weight.any() for name, weight in adapters.items() if "lora_B" in name)


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare what was logged: losses, gradients, rewards, step by step, and of the evaluation."""
    assert len(found) == len(expected)
    names = ("loss", "grad_norm", "rewards/margins", "logps/chosen", "eval_loss", "eval_rewards/margins")
    for mine, theirs in zip(found, expected, strict=True):
        for name in theirs.keys() & {*names}:
            assert mine[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-5), name
