"""LlamaFactory's path and TRL's give the same Uni-DPO loss on the same batch.

No environment holds both LlamaFactory and TRL 1.x. So what LlamaFactory logs for a batch is kept beside this file,
checked where LlamaFactory is installed, and compared with wherever any TRL is. `UNI_DPO_RECORD=1` writes it anew.
So it is with weighted losses, whose gradients are kept by their norms and by their projections on one direction.
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
WEIGHTS = {"uni_dpo": 1, "sigmoid": 0.5, "hinge": 0.3, "ipo": 0.01, "kto_pair": 0.2, "bco_pair": 0.25}
WEIGHTS |= {"orpo": 0.1, "simpo": 0.4, "sft": 0.6}
LOSSES: dict[str, Any] = {"": "uni_dpo", "_weighted": WEIGHTS}


def logged_names(losses: str) -> list[str]:
    """What both libraries log of a batch under the same names."""
    parts = [f"loss/{name}" for name in WEIGHTS] if losses else []
    return ["loss", "rewards/chosen", "rewards/rejected", *(f"uni_dpo/{name}" for name in TERMS), *parts]


def directions(model: Any) -> dict[str, Any]:
    """Each parameter's gradient as two numbers: its norm, and what it is along a fixed direction."""
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            along = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            gradient = parameter.grad.double()
            found[f"gradient {name}"] = np.array([gradient.norm(), (gradient * along).sum()])
    return found


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
    policy: Path, reference: Path, template: str, losses: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[dict[str, Any], dict[str, float], dict[str, Any]]:
    """The first batch of a LlamaFactory run as it was collated, what the run logged for it, and its gradients."""
    from uni_dpo.llamafactory import register

    register()
    from llamafactory.train.tuner import run_exp

    from uni_dpo.llamafactory.data import ScoredPairCollator
    from uni_dpo.llamafactory.trainer import LlamaFactoryUniDPOTrainer

    batches, gradients = [], {}
    train = LlamaFactoryUniDPOTrainer.training_step

    def stepped(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        loss = train(self, model, *args, **kwargs)
        gradients.update(directions(model))
        return loss

    monkeypatch.setattr(LlamaFactoryUniDPOTrainer, "training_step", stepped)
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
            "pref_loss": losses,
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
    return batches[0], log[0], gradients


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


@pytest.fixture(params=LOSSES, ids=["uni_dpo", "weighted"])
def losses(request: pytest.FixtureRequest) -> str:
    """Which of `LOSSES`."""
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
    losses: str,
    models: dict[str, Path],
    text_rows: list[dict[str, Any]],
    image_rows: list[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("llamafactory")
    from uni_dpo.llamafactory.question_pairs import take_pair

    rows, template = (text_rows, "qwen") if kind == "text" else (image_rows, "qwen2_vl")
    llamafactory_pairs(rows, tmp_path)
    batch, logged, gradients = llamafactory_step(
        models["policy"], models["reference"], template, LOSSES[losses], tmp_path, monkeypatch
    )
    batch["score_chosen"], batch["score_rejected"] = take_pair(batch, "scores")
    kept = {name: value.numpy() for name, value in batch.items() if name not in ("position_ids", "rope_deltas")}
    found = kept | {name: np.float64(logged[name]) for name in logged_names(losses)} | (gradients if losses else {})
    if os.environ.get("UNI_DPO_RECORD"):
        np.savez_compressed(FOLDER / f"parity_{kind}{losses}.npz", **found)
    recorded = np.load(FOLDER / f"parity_{kind}{losses}.npz")
    for name in ("input_ids", "labels", *logged_names(losses)):
        np.testing.assert_allclose(found[name], recorded[name], rtol=1e-5, atol=1e-5, err_msg=name)


def test_one_batch_one_loss(
    kind: str,
    losses: str,
    models: dict[str, Path],
    text_rows: list[dict[str, Any]],
    image_rows: list[dict[str, Any]],
    settings: Callable[..., Any],
    step: Callable[..., Any],
) -> None:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    from uni_dpo.trl import UniDPOTrainer

    recorded = np.load(FOLDER / f"parity_{kind}{losses}.npz")
    loader = AutoModelForCausalLM if kind == "text" else AutoModelForImageTextToText
    policy, reference = (loader.from_pretrained(models[name], dtype=torch.float32) for name in ("policy", "reference"))
    rows = text_rows if kind == "text" else image_rows
    config = settings(uni_dpo_nll_lambda=0.2, loss_type=LOSSES[losses])
    trainer = UniDPOTrainer(policy, reference, config, train_dataset=Dataset.from_list(rows))
    trainer.model.eval()
    gradients = [name for name in recorded.files if name.startswith("gradient ")]
    batch = {n: torch.from_numpy(recorded[n]) for n in recorded.files if recorded[n].ndim and n not in gradients}
    loss, metrics = step(trainer, trainer.model, in_trls_layout(batch, trainer))
    assert loss.item() == pytest.approx(recorded["loss"], rel=1e-5, abs=1e-5)
    assert abs(metrics["rewards/margins"]) > 1e-3, "policy and reference are the same: the test shows nothing"
    for name in logged_names(losses)[1:]:
        assert metrics[name] == pytest.approx(recorded[name], rel=1e-5, abs=1e-5), name
    loss.backward()
    found = directions(trainer.model)
    assert bool(gradients) == bool(losses)
    for name in gradients:
        np.testing.assert_allclose(found[name], recorded[name], rtol=1e-5, atol=1e-5, err_msg=name)
