"""LlamaFactory's path and TRL's give the same Uni-DPO loss on the same batch.

No environment holds both LlamaFactory and TRL 1.x. So what LlamaFactory logs for a batch is kept beside this file,
checked where LlamaFactory is installed, and compared with wherever any TRL is. `UNI_DPO_RECORD=1` writes it anew.
"""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

IGNORE = -100
PAIRS = 4
FOLDER = Path(__file__).parent
TERMS = ("w_qual", "w_perf", "nll_active", "score_margin")
LOGGED = ("loss", "rewards/chosen", "rewards/rejected", *(f"uni_dpo/{name}" for name in TERMS))


def llamafactory_pairs(rows: list[dict[str, Any]], folder: Path) -> None:
    """The TRL rows as a LlamaFactory dataset named `pairs`."""

    def text(messages: list[dict[str, Any]]) -> str:
        content = messages[-1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]

    pairs = [
        {
            "instruction": "<image>" * len(row.get("images", [])) + text(row["prompt"]),
            "chosen": text(row["chosen"]),
            "rejected": text(row["rejected"]),
            "score_chosen": row["score_chosen"],
            "score_rejected": row["score_rejected"],
            **({"images": row["images"]} if "images" in row else {}),
        }
        for row in rows
    ]
    columns = {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}
    if "images" in rows[0]:
        columns["images"] = "images"
    (folder / "pairs.json").write_text(json.dumps(pairs))
    entry = {"file_name": "pairs.json", "ranking": True, "columns": columns}
    (folder / "dataset_info.json").write_text(json.dumps({"pairs": entry}))


def llamafactory_step(
    policy: Path, reference: Path, template: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], dict[str, float]]:
    """The first batch of a LlamaFactory run as it was collated, and what the run logged for it."""
    from uni_dpo.llamafactory import register

    register()
    from llamafactory.train.tuner import run_exp

    from uni_dpo.llamafactory.data import ScoredPairCollator

    batches = []
    collate = ScoredPairCollator.__call__

    def recorded(self: Any, features: Any) -> Any:
        batch = collate(self, features)
        batches.append({name: value.clone() for name, value in batch.items() if torch.is_tensor(value)})
        return batch

    monkeypatch.setattr(ScoredPairCollator, "__call__", recorded)
    run_exp(
        {
            "model_name_or_path": str(policy),
            "ref_model": str(reference),
            "stage": "dpo",
            "do_train": True,
            "finetuning_type": "full",
            "pref_loss": "uni_dpo",
            "uni_dpo_nll_lambda": 0.2,
            "dataset_dir": str(folder),
            "dataset": "pairs",
            "template": template,
            "pair_forward": "ordinary",  # whose batch is laid out as TRL's
            "overwrite_cache": True,
            "output_dir": str(folder / "out"),
            "per_device_train_batch_size": PAIRS,
            "max_steps": 1,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
        }
    )
    log = json.loads((folder / "out" / "trainer_state.json").read_text())["log_history"]
    return batches[0], log[0]


def in_trls_layout(batch: dict[str, Any], trainer: Any) -> dict[str, Any]:
    """The tokens, images and scores of LlamaFactory's batch as the installed TRL lays them out."""
    return (_apart if hasattr(trainer, "concatenated_forward") else _joined)(batch, trainer)


def _joined(batch: dict[str, Any], trainer: Any) -> dict[str, Any]:
    from uni_dpo.trl.data import SCORES

    names = ("input_ids", "attention_mask", "pixel_values", "image_grid_thw", *SCORES)
    joined = {name: batch[name] for name in names if name in batch}
    joined["completion_mask"] = (batch["labels"] != IGNORE).long()
    if "pixel_values" in batch:
        joined["mm_token_type_ids"] = (batch["input_ids"] == trainer.model.config.image_token_id).int()
    return joined


def _apart(batch: dict[str, Any], trainer: Any) -> dict[str, Any]:
    from uni_dpo.trl.data import SCORES

    chosen, rejected = batch["input_ids"].chunk(2)
    chosen_labels, rejected_labels = batch["labels"].chunk(2)
    prompts = []
    answers: dict[str, list[torch.Tensor]] = {"chosen": [], "rejected": []}
    for side, ids, labels in (("chosen", chosen, chosen_labels), ("rejected", rejected, rejected_labels)):
        for row, label in zip(ids, labels, strict=True):
            scored = (label != IGNORE).nonzero().flatten()
            answers[side].append(row[scored])
            if side == "chosen":
                prompts.append(row[: scored[0]])
    out = {}
    for name, rows, padding_side in (("prompt", prompts, "left"), *((s, a, "right") for s, a in answers.items())):
        out[f"{name}_input_ids"] = pad_sequence(rows, batch_first=True, padding_side=padding_side)
        masks = [torch.ones_like(row) for row in rows]
        out[f"{name}_attention_mask"] = pad_sequence(masks, batch_first=True, padding_side=padding_side)
    for name in ("pixel_values", "image_grid_thw"):
        if name in batch:
            out[name] = batch[name].chunk(2)[0]
    return out | {name: batch[name] for name in SCORES}


@pytest.fixture(params=["text", "images"])
def kind(request: pytest.FixtureRequest) -> str:
    """What the pairs are about."""
    return request.param


@pytest.fixture
def models(kind: str, tiny_text: Path, tiny_qwen2_vl: Path, tmp_path: Path) -> dict[str, Path]:
    """Policy and reference, which differ, so that every term of the objective counts; the same in every world."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    start, loader = (
        (tiny_text, AutoModelForCausalLM) if kind == "text" else (tiny_qwen2_vl, AutoModelForImageTextToText)
    )
    model = loader.from_pretrained(start, dtype=torch.float32)
    folders = {}
    for seed, name in enumerate(("reference", "policy")):
        for key, parameter in model.named_parameters():
            generator = torch.Generator().manual_seed(zlib.crc32(f"{seed} {key}".encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.data = 0.06 * noise + float("norm" in key and key.endswith("weight"))
        folders[name] = tmp_path / name
        model.save_pretrained(folders[name])
        for file in start.iterdir():
            if not (folders[name] / file.name).exists():
                (folders[name] / file.name).write_bytes(file.read_bytes())
    return folders


def test_what_llamafactory_logs_is_what_was_recorded(
    kind: str,
    models: dict[str, Path],
    text_rows: list[dict[str, Any]],
    image_rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("llamafactory")
    from uni_dpo.llamafactory.data import take_scores

    rows, template = (text_rows, "qwen") if kind == "text" else (image_rows, "qwen2_vl")
    llamafactory_pairs(rows, tmp_path)
    batch, logged = llamafactory_step(models["policy"], models["reference"], template, tmp_path, monkeypatch)
    batch["score_chosen"], batch["score_rejected"] = take_scores(batch)
    kept = {name: value.numpy() for name, value in batch.items() if name not in ("position_ids", "rope_deltas")}
    found = kept | {name: np.float64(logged[name]) for name in LOGGED}
    if os.environ.get("UNI_DPO_RECORD"):
        np.savez_compressed(FOLDER / f"parity_{kind}.npz", **found)
    recorded = np.load(FOLDER / f"parity_{kind}.npz")
    for name in ("input_ids", "labels", *LOGGED):
        np.testing.assert_allclose(found[name], recorded[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_one_batch_one_loss(
    kind: str,
    models: dict[str, Path],
    text_rows: list[dict[str, Any]],
    image_rows: list[dict[str, Any]],
    settings: Callable[..., Any],
    step: Callable[..., Any],
) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from uni_dpo.trl import UniDPOTrainer

    recorded = np.load(FOLDER / f"parity_{kind}.npz")
    loader = AutoModelForCausalLM if kind == "text" else AutoModelForImageTextToText
    policy, reference = (loader.from_pretrained(models[name], dtype=torch.float32) for name in ("policy", "reference"))
    rows = text_rows if kind == "text" else image_rows
    trainer = UniDPOTrainer(policy, reference, settings(uni_dpo_nll_lambda=0.2), train_dataset=Dataset.from_list(rows))
    trainer.model.eval()
    batch = {name: torch.from_numpy(recorded[name]) for name in recorded.files if recorded[name].ndim}
    with torch.no_grad():
        loss, metrics = step(trainer, trainer.model, in_trls_layout(batch, trainer))
    assert loss.item() == pytest.approx(recorded["loss"], abs=1e-5)
    assert abs(metrics["rewards/margins"]) > 1e-3, "policy and reference are the same: the test shows nothing"
    for name in LOGGED[1:]:
        assert metrics[name] == pytest.approx(recorded[name], abs=1e-5), name
