"""Several losses with weights in whole runs of LlamaFactory: each is what it is alone, on both forward passes."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from uni_dpo.weighted_losses import SHIFT

# One plain step, so that a weight's change is its gradient.
STEP = {"optim": "sgd", "learning_rate": 0.01, "max_steps": 1, "max_grad_norm": 0.0}
LOSSES = ("uni_dpo", "sigmoid", "hinge", "ipo", "kto_pair", "bco_pair", "orpo", "simpo", "sft")
WEIGHTS = dict(zip(LOSSES, (1, 0.5, 0.3, 0.01, 0.2, 0.25, 0.1, 0.4, 0.6), strict=True))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.double() for name, value in load_file(folder / "model.safetensors").items()}


def line(log: list[dict[str, Any]]) -> dict[str, Any]:
    return next(entry for entry in log if "loss" in entry)


def test_loss_and_gradients_are_the_weighted_sum_of_each_alone(train: Any, tiny_qwen2_vl: Path, tmp_path: Path) -> None:
    """Each with the β and the averaging that it has alone, against a reference that is another model."""
    start = tmp_path / "start"
    train(output_dir=str(start), learning_rate=3e-3, max_steps=3)
    settings = STEP | {"model_name_or_path": str(start), "ref_model": str(tiny_qwen2_vl)}
    before = weights(start)
    change = {name: torch.zeros_like(value) for name, value in before.items()}
    alone = {}
    for name, weight in WEIGHTS.items():
        out = tmp_path / name
        alone[name] = line(train(**settings, pref_loss={name: 1}, output_dir=str(out), pair_forward="ordinary"))["loss"]
        for key, value in weights(out).items():
            change[key] += weight * (value - before[key])
    for pair_forward in ("ordinary", "shared_prefix"):
        out = tmp_path / pair_forward
        mixed = line(train(**settings, pref_loss=WEIGHTS, output_dir=str(out), pair_forward=pair_forward))
        assert mixed["loss"] == pytest.approx(sum(weight * alone[name] for name, weight in WEIGHTS.items()), rel=1e-5)
        assert {name: mixed[f"loss/{name}"] for name in LOSSES} == pytest.approx(alone, rel=1e-5)
        for key, value in weights(out).items():
            torch.testing.assert_close(value - before[key], change[key], rtol=2e-3, atol=2e-7)


@pytest.mark.parametrize("name", ["uni_dpo", "sigmoid", "orpo", "simpo"])
def test_a_mapping_of_one_is_the_plain_loss_to_the_last_bit(train: Any, name: str) -> None:
    names = ("loss", "grad_norm", "logps/chosen")
    logs = [train(pref_loss=loss, max_steps=3) for loss in (name, {name: 1}, f"{name}: 1")]
    plain, *others = [[[entry[key] for entry in log if "loss" in entry] for key in names] for log in logs]
    assert others == [plain, plain]


def test_sft_is_what_pref_ftx_adds(train: Any) -> None:
    added = train(pref_ftx=0.3)
    named = train(pref_loss={"uni_dpo": 1, "sft": 0.3})
    assert [entry["loss"] for entry in named[:-1]] == pytest.approx([entry["loss"] for entry in added[:-1]], rel=1e-5)


def test_losses_without_uni_dpo_need_no_scores(train: Any, pair_data: Any) -> None:
    rows = json.loads((pair_data.folder / "mixed.json").read_text())
    bare = [{name: value for name, value in row.items() if not name.startswith("score")} for row in rows]
    pair_data.add("bare", bare)
    log = train(dataset="bare", pref_loss={"dpo": 0.8, "bco": 0.2, "sft": 1.0}, max_steps=2)
    first = line(log)
    assert not any(name.startswith("uni_dpo/") for name in first)
    # All ratios are 0 at the first step: log 2, 2 log 2, and the chosen answers' own.
    assert first["loss/sigmoid"] == pytest.approx(0.6931472, rel=1e-5)
    assert first["loss/bco_pair"] == pytest.approx(1.3862944, rel=1e-5)
    assert first["loss"] == pytest.approx(0.8 * 0.6931472 + 0.2 * 1.3862944 + first["loss/sft"], rel=1e-5)


def test_losses_that_compare_with_nothing_load_no_reference(train: Any) -> None:
    log = train(pref_loss={"simpo": 1, "sft": 0.1}, max_steps=1)
    assert line(log)["rewards/chosen"] < 0  # β times the policy's own, as LlamaFactory has it without a reference


def test_what_bco_remembers_is_resumed(train: Any, tmp_path: Path) -> None:
    settings = {"pref_loss": {"uni_dpo": 1, "bco": 0.5}, "num_train_epochs": 2, "output_dir": str(tmp_path / "bco")}
    whole = train(**settings, save_strategy="steps", save_steps=2)
    kept = json.loads((tmp_path / "bco" / "checkpoint-4" / SHIFT).read_text())
    assert kept["batches"] == 4
    assert kept["shift"] != 0
    resumed = train(
        **settings, overwrite_output_dir=False, resume_from_checkpoint=str(tmp_path / "bco" / "checkpoint-4")
    )
    for name in ("loss", "loss/bco_pair"):
        found, expected = ([entry[name] for entry in log if "loss" in entry] for log in (resumed, whole))
        assert found == pytest.approx(expected, rel=1e-4), name
