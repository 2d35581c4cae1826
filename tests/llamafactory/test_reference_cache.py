"""Reference log-probabilities on disk: equal runs, no reference the second time, and nothing stale or damaged read."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory.reference_records import RECORD, appending, read_records

NAMES = ("loss", "grad_norm", "rewards/margins")


def trajectory(log: list[dict[str, Any]]) -> torch.Tensor:
    return torch.tensor([[line[name] for name in NAMES] for line in log if "loss" in line], dtype=torch.float64)


@pytest.fixture
def cached(train: Any, tmp_path: Path) -> Callable[..., torch.Tensor]:
    """A run with precomputed reference log-probs; λ = 0, since its condition is a tie where nothing has moved."""

    def run(**settings: Any) -> torch.Tensor:
        common = {"precompute_ref_log_probs": True, "ref_cache_dir": str(tmp_path / "cache"), "learning_rate": 1e-4}
        return trajectory(train(**common | {"uni_dpo_nll_lambda": 0.0} | settings))

    return run


@pytest.fixture
def references(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How often a reference model was made, and over how many pairs one ran."""
    from llamafactory.train import trainer_utils

    from uni_dpo.llamafactory import workflow
    from uni_dpo.llamafactory.trainer import LlamaFactoryUniDPOTrainer

    counts = {"made": 0, "pairs": 0}
    make, forward = trainer_utils.create_ref_model, LlamaFactoryUniDPOTrainer.concatenated_forward

    def counting_make(*args: Any, **kwargs: Any) -> Any:
        counts["made"] += 1
        return make(*args, **kwargs)

    def counting_forward(self: Any, model: Any, batch: Any, is_ref_model: bool = False) -> Any:
        output = forward(self, model, batch, is_ref_model)
        counts["pairs"] += len(output["chosen_logps"]) * is_ref_model
        return output

    monkeypatch.setattr(workflow, "_upstream_create_ref_model", counting_make)
    monkeypatch.setattr(LlamaFactoryUniDPOTrainer, "concatenated_forward", counting_forward)
    return counts


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"pair_forward": "ordinary"},
        {"finetuning_type": "lora", "lora_target": "q_proj,v_proj"},
        {"pref_loss": "sigmoid", "uni_dpo_nll_lambda": 0.001},
        {"dpo_average_log_prob": False},
    ],
    ids=lambda settings: " ".join(f"{name}={value}" for name, value in settings.items()) or "uni_dpo",
)
def test_the_same_run_without_a_reference_the_second_time(
    cached: Any, references: dict[str, int], settings: dict[str, Any]
) -> None:
    carried = cached(precompute_ref_log_probs=False, **settings)
    assert references["pairs"] == 16
    references.update(made=0, pairs=0)
    first = cached(**settings)
    assert references == {"made": 1, "pairs": 16}
    references.update(made=0, pairs=0)
    second = cached(**settings)
    assert references == {"made": 0, "pairs": 0}
    torch.testing.assert_close(first, carried, rtol=1e-4, atol=1e-5)
    assert torch.equal(first, second)


def test_other_hyperparameters_use_the_same_cache(cached: Any, references: dict[str, int]) -> None:
    cached(max_steps=1)
    references.update(made=0, pairs=0)
    cached(max_steps=1, uni_dpo_qual_eta=0.1, uni_dpo_perf_gamma=1.0, uni_dpo_tau_ref=0.5, pref_beta=1.0, seed=9)
    assert references == {"made": 0, "pairs": 0}


def test_evaluation_pairs_are_precomputed_too(cached: Any, references: dict[str, int]) -> None:
    settings = {"max_steps": 1, "val_size": 6, "eval_strategy": "steps", "eval_steps": 1}
    cached(**settings)
    assert references == {"made": 1, "pairs": 16}
    cached(**settings)
    assert references == {"made": 1, "pairs": 16}


def test_another_reference_is_another_cache(cached: Any, tmp_path: Path, references: dict[str, int]) -> None:
    from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl

    first = cached(max_steps=1, model_name_or_path=str(write_tiny_qwen2_vl(tmp_path / "model", seed=1)))
    shutil.rmtree(tmp_path / "model")
    second = cached(max_steps=1, model_name_or_path=str(write_tiny_qwen2_vl(tmp_path / "model", seed=2)))
    assert references == {"made": 2, "pairs": 32}
    assert not torch.equal(first, second)


@pytest.mark.parametrize("change", [{"cutoff_len": 256}, {"image_max_pixels": 9999}, {"bf16": True}], ids=str)
def test_another_way_to_run_it_is_another_cache(
    cached: Any, references: dict[str, int], change: dict[str, Any]
) -> None:
    cached(max_steps=1)
    cached(max_steps=1, **change)
    assert references["made"] == 2


def test_a_changed_image_or_answer_is_computed_again(
    cached: Any, pair_data: Any, tmp_path: Path, references: dict[str, int], digits: Any
) -> None:

    rows = json.loads((pair_data.folder / "mixed.json").read_text())[:8]
    image = tmp_path / "image.png"
    shutil.copy(rows[0]["images"][0], image)
    rows[0]["images"] = [str(image)]
    pair_data.add("changing", rows)
    cached(max_steps=1, dataset="changing")
    references.update(made=0, pairs=0)
    shutil.copy(rows[2]["images"][1], image)
    rows[5]["chosen"] += " indeed"
    pair_data.add("changing", rows)
    cached(max_steps=1, dataset="changing")
    assert references == {"made": 1, "pairs": 2}


def test_an_interrupted_pass_goes_on_where_it_stopped(
    cached: Any, references: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    from uni_dpo.llamafactory.trainer import LlamaFactoryUniDPOTrainer

    whole = LlamaFactoryUniDPOTrainer.concatenated_forward

    def stopping(self: Any, model: Any, batch: Any, is_ref_model: bool = False) -> Any:
        if references["pairs"] == 8:
            raise KeyboardInterrupt
        return whole(self, model, batch, is_ref_model)

    monkeypatch.setattr(LlamaFactoryUniDPOTrainer, "concatenated_forward", stopping)
    with pytest.raises(KeyboardInterrupt):
        cached(max_steps=1)
    monkeypatch.setattr(LlamaFactoryUniDPOTrainer, "concatenated_forward", whole)
    cached(max_steps=1)
    assert references == {"made": 2, "pairs": 16}


def test_damage_is_noticed_and_mended(cached: Any, references: dict[str, int], tmp_path: Path) -> None:
    expected = cached(max_steps=4)
    (file,) = (tmp_path / "cache").glob("*/*.answers")
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content[:-3])
    references.update(made=0, pairs=0)
    torch.testing.assert_close(cached(max_steps=4), expected, rtol=1e-4, atol=1e-5)
    assert references == {"made": 1, "pairs": 2}


def test_streamed_pairs_are_refused(tmp_path: Path) -> None:
    from datasets import IterableDataset

    from uni_dpo.llamafactory.reference_cache import ReferenceCache

    streamed = IterableDataset.from_generator(lambda: iter([{"chosen_input_ids": [1]}]))
    with pytest.raises(UniDPOError, match="streaming: false"):
        ReferenceCache(tmp_path, {}).expect({"train_dataset": streamed, "eval_dataset": None})


def test_records_survive_a_torn_end(tmp_path: Path) -> None:
    with appending(tmp_path, 0) as write:
        write({b"a" * 32: -1.5, b"\0" * 32: float("nan")})
    with appending(tmp_path, 1) as write:
        write({b"b" * 32: -4.0})
    first, second = sorted(tmp_path.iterdir())
    assert first.name.startswith("rank-0000-")
    os.truncate(second, RECORD.itemsize - 1)
    assert read_records(tmp_path) == ({b"a" * 32: -1.5}, 2)


@pytest.mark.parametrize("at", range(0, RECORD.itemsize, 5))
def test_no_damaged_byte_goes_unnoticed(tmp_path: Path, at: int) -> None:
    with appending(tmp_path, 0) as write:
        write({b"a" * 32: -1.5})
    (file,) = tmp_path.iterdir()
    content = np.frombuffer(file.read_bytes(), np.uint8).copy()
    content[at] ^= 4
    file.write_bytes(content.tobytes())
    assert read_records(tmp_path) == ({}, 1)


@pytest.mark.slow
def test_two_ranks_share_the_work(config: Any, cached: Any, references: dict[str, int], tmp_path: Path) -> None:
    """What they computed is whole: one process finds every pair of theirs."""
    cache = {"precompute_ref_log_probs": True, "ref_cache_dir": str(tmp_path / "cache")}
    described = tmp_path / "ranks.json"
    described.write_text(json.dumps(config(**cache, per_device_train_batch_size=2, max_steps=1)))
    launch = f"from uni_dpo.llamafactory.launch import train; train([{str(described)!r}])"
    environment = os.environ | {"FORCE_TORCHRUN": "1", "NPROC_PER_NODE": "2", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", launch], env=environment, check=True, capture_output=True)
    files = (tmp_path / "cache").glob("*/*.answers")
    assert [file.stat().st_size // RECORD.itemsize for file in files] == [16, 16]
    cached(max_steps=1)
    assert references == {"made": 0, "pairs": 0}
