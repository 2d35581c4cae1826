"""LlamaFactory's path and TRL's give the same Uni-DPO loss on the same batch."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

IGNORE = -100
PAIRS = 4


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


def as_trl_batch(batch: dict[str, Any]) -> dict[str, Any]:
    """The same tokens, images and scores under the names that TRL uses."""
    from uni_dpo.llamafactory.data import take_scores

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
    out["score_chosen"], out["score_rejected"] = take_scores(dict(batch))
    return out


@pytest.mark.parametrize("kind", ["text", "images"])
def test_one_batch_one_loss(
    kind: str,
    tiny_text: Path,
    tiny_qwen2_vl: Path,
    text_rows: list[dict[str, Any]],
    image_rows: list[dict[str, Any]],
    settings: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Policy and reference differ, so that every term of the objective counts."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from uni_dpo.trl import UniDPOTrainer

    reference, rows, template, loader = (
        (tiny_text, text_rows, "qwen", AutoModelForCausalLM)
        if kind == "text"
        else (tiny_qwen2_vl, image_rows, "qwen2_vl", AutoModelForImageTextToText)
    )
    model = loader.from_pretrained(reference, dtype=torch.float32)
    torch.manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "policy")
    for file in reference.iterdir():
        if not (tmp_path / "policy" / file.name).exists():
            (tmp_path / "policy" / file.name).write_bytes(file.read_bytes())
    llamafactory_pairs(rows, tmp_path)
    batch, logged = llamafactory_step(tmp_path / "policy", reference, template, tmp_path, monkeypatch)

    trainer = UniDPOTrainer(
        str(tmp_path / "policy"),
        str(reference),
        settings(uni_dpo_nll_lambda=0.2),
        train_dataset=Dataset.from_list(rows),
    )
    trainer.model.eval()
    with torch.no_grad():
        loss, metrics = trainer.get_batch_loss_metrics(trainer.model, as_trl_batch(batch))
    assert loss.item() == pytest.approx(logged["loss"], abs=1e-5)
    assert abs(metrics["rewards/margins"]) > 1e-3, "policy and reference are the same: the test shows nothing"
    for name in ("w_qual", "w_perf", "nll_active", "score_margin"):
        assert metrics[f"uni_dpo/{name}"] == pytest.approx(logged[f"uni_dpo/{name}"], abs=1e-5)
    assert metrics["rewards/chosen"] == pytest.approx(logged["rewards/chosen"], abs=1e-5)
    assert metrics["rewards/rejected"] == pytest.approx(logged["rewards/rejected"], abs=1e-5)
