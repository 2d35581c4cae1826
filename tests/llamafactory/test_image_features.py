"""Whole runs of LlamaFactory whose image features are kept on disk."""

import importlib.util
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from llamafactory.extras.env import VERSION

from uni_dpo.errors import UniDPOError

LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}
pytestmark = pytest.mark.skipif(VERSION == "0.9.4", reason="it does not freeze the tower that it says it freezes")


@pytest.fixture
def kept(train: Any, tmp_path: Path) -> Callable[..., torch.Tensor]:
    """A run that keeps its image features; λ = 0, since its condition is a tie where nothing has moved."""

    def run(**settings: Any) -> torch.Tensor:
        common = {
            "keep_image_features": True,
            "image_features_dir": str(tmp_path / "features"),
            "ref_cache_dir": str(tmp_path / "reference"),
            "learning_rate": 1e-4,
            "uni_dpo_nll_lambda": 0.0,
        }
        log = train(**common | settings)
        return torch.tensor([[line["loss"], line["grad_norm"]] for line in log if "loss" in line], dtype=torch.float64)

    return run


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """An entry for each run of the vision tower."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl as modeling

    seen: list[int] = []
    tower = modeling.Qwen2VisionTransformerPretrainedModel
    forward = tower.forward
    monkeypatch.setattr(tower, "forward", lambda self, *a, **k: seen.append(1) or forward(self, *a, **k))
    return seen


@pytest.mark.parametrize("tuning", [{}, LORA, {"pref_loss": "sigmoid", "pair_forward": "shared_prefix"}], ids=str)
def test_the_second_run_does_not_look(kept: Any, looks: list[int], tuning: dict[str, Any]) -> None:
    plain = kept(keep_image_features=False, **tuning)
    assert looks
    first = kept(**tuning)
    looks.clear()
    second = kept(**tuning)
    assert not looks
    assert torch.equal(first, plain)
    assert torch.equal(second, plain)


def test_the_second_epoch_does_not_look(kept: Any, looks: list[int]) -> None:
    kept(num_train_epochs=1, max_steps=-1)
    once = len(looks)
    looks.clear()
    kept(num_train_epochs=2, max_steps=-1, image_max_pixels=9999)
    assert len(looks) == once


def test_with_a_precomputed_reference_its_pass_is_all_that_looks(kept: Any, looks: list[int]) -> None:
    first = kept(precompute_ref_log_probs=True)
    once = len(looks)
    looks.clear()
    second = kept(precompute_ref_log_probs=True, pref_beta=1.0)
    assert once
    assert not looks
    assert len(first) == len(second)


def test_other_pixel_limits_look_anew(kept: Any, looks: list[int]) -> None:
    kept(max_steps=1)
    looks.clear()
    kept(max_steps=1, image_max_pixels=9999)
    assert looks


def test_the_log_says_what_is_there(kept: Any, caplog: pytest.LogCaptureFixture) -> None:
    shown = logging.getLogger("llamafactory")
    shown.addHandler(caplog.handler)
    try:
        for _ in range(2):
            kept(max_steps=1, precompute_ref_log_probs=True)
    finally:
        shown.removeHandler(caplog.handler)
    said = "\n".join(caplog.messages)
    assert "Image features: 0 images in " in said
    assert re.search(r"Image features: [1-9]\d* images in ", said)
    assert (found := re.search(r"Reference log-probs: 0 of (\d+) answers in ", said))
    assert f"Reference log-probs: {found[1]} of {found[1]} answers in " in said
    assert "Reference log-probs: no reference model is loaded." in said


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"freeze_vision_tower": False}, "freeze_vision_tower: false"),
        ({"freeze_multi_modal_projector": False}, "freeze_multi_modal_projector: false"),
        ({"pair_forward": "ordinary"}, "one sequence per pair"),
        ({"pref_loss": "sigmoid"}, "one sequence per pair"),
        ({"template": "qwen"}, "template: qwen has no images"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_keep_features_is_refused(kept: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(UniDPOError, match=named):
        kept(max_steps=1, **settings)


def test_features_that_come_as_one_are_not_kept(tmp_path: Path) -> None:
    """Gemma 4 gives those of all images of a batch in one tensor."""
    from uni_dpo.llamafactory.pair_forward import PairForward
    from uni_dpo.shared_prefix.image_store import ImageStore

    spec = importlib.util.spec_from_file_location("checkpoints", Path(__file__).with_name("checkpoints.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.tiny_models().tiny_model("gemma4").requires_grad_(False)
    with pytest.raises(UniDPOError, match="gives the features of all images of a batch as one: leave it out"):
        PairForward.choose(model, None, store=ImageStore(tmp_path, {}))
