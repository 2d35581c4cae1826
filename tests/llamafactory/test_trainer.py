"""Whole runs of the real LlamaFactory against a float64 version that shares nothing with it but the tokens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from datasets import load_from_disk
from peft import PeftModel
from safetensors.torch import load_file

from uni_dpo.demo.tiny_model import IMAGE_SIDE
from uni_dpo.llamafactory.question_pairs import pair_feature

IGNORE = -100


def steps(log: list[dict[str, Any]], *names: str) -> list[list[float]]:
    """The named metrics of every training step, one list per name."""
    lines = [line for line in log if "loss" in line]
    return [[line[name] for line in lines] for name in names]


class NaiveRun:
    """Uni-DPO by the book in float64: one sequence at a time, no padding, losses by the paper's formula."""

    def __init__(self, model: Path, tokenized: Path, *, average: bool, lr: float) -> None:
        from transformers import AutoProcessor, Qwen2VLForConditionalGeneration

        self.average = average
        self.rows = [pair_feature(question, 0, 1, 512) for question in load_from_disk(str(tokenized))["train"]]
        self.processor = AutoProcessor.from_pretrained(model)
        self.policy = Qwen2VLForConditionalGeneration.from_pretrained(model, dtype=torch.float64)
        self.reference = Qwen2VLForConditionalGeneration.from_pretrained(model, dtype=torch.float64)
        self.policy.model.visual.requires_grad_(False)
        self.parameters = [p for p in self.policy.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(self.parameters, lr=lr, weight_decay=0.0)

    def answer_logp(self, model: torch.nn.Module, row: dict[str, Any], side: str) -> torch.Tensor:
        from PIL import Image

        ids = torch.tensor([row[f"{side}_input_ids"]])
        labels = torch.tensor([row[f"{side}_labels"]])
        inputs = {}
        if row["images"]:
            images = [Image.open(image["path"] if isinstance(image, dict) else image) for image in row["images"]]
            assert all(image.size == (IMAGE_SIDE, IMAGE_SIDE) for image in images)
            pixels = self.processor.image_processor(images, return_tensors="pt")
            image_token = self.processor.tokenizer.convert_tokens_to_ids("<|image_pad|>")
            inputs = {
                "pixel_values": pixels["pixel_values"].double(),
                "image_grid_thw": pixels["image_grid_thw"],
                "mm_token_type_ids": (ids == image_token).int(),
            }
        logits = model(input_ids=ids, **inputs).logits[0, :-1]
        targets = labels[0, 1:]
        answer = targets != IGNORE
        logps = logits[answer].log_softmax(-1).gather(1, targets[answer][:, None])
        return logps.mean() if self.average else logps.sum()

    def step(self, rows: list[dict[str, Any]], beta: float, nll_lambda: float) -> tuple[float, float]:
        losses = []
        for row in rows:
            policy_w, policy_l = (self.answer_logp(self.policy, row, side) for side in ("chosen", "rejected"))
            with torch.no_grad():
                ref_w, ref_l = (self.answer_logp(self.reference, row, side) for side in ("chosen", "rejected"))
            gap = row["score_chosen"] - row["score_rejected"]
            weight = torch.tensor(0.7 * gap).sigmoid() * (1 - (beta * (policy_w - policy_l) - 2.0).sigmoid()) ** 3
            preference = -((beta * ((policy_w - policy_l) - (ref_w - ref_l))).sigmoid().log())
            active = bool(ref_w > policy_w) and row["score_chosen"] >= 2.5
            losses.append(weight * preference - nll_lambda * active * policy_w)
        loss = torch.stack(losses).mean()
        self.optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        return loss.item(), norm.item()


@pytest.mark.parametrize("average", [True, False], ids=["averaged", "summed"])
def test_trajectory_equals_the_formula_in_float64(
    train: Any, tiny_qwen2_vl: Path, tmp_path: Path, average: bool
) -> None:
    """Text-only, one-image and two-image pairs in every batch; summed log-probabilities need a smaller β."""
    beta = 2.0 if average else 0.2
    settings = {"pref_beta": beta, "dpo_average_log_prob": average, "disable_shuffling": True}
    log = train(**settings, tokenized_path=str(tmp_path / "tokens"), learning_rate=3e-4)
    losses, norms = steps(log, "loss", "grad_norm")
    naive = NaiveRun(tiny_qwen2_vl, tmp_path / "tokens", average=average, lr=3e-4)
    rows = list(naive.rows)
    expected = [naive.step(rows[start : start + 4], beta, 0.2) for start in range(0, len(rows), 4)]
    assert losses == pytest.approx([loss for loss, _ in expected], rel=1e-3)
    assert norms == pytest.approx([norm for _, norm in expected], rel=1e-3)


def test_everything_off_is_half_of_llamafactorys_sigmoid(train: Any) -> None:
    common = {
        "dpo_average_log_prob": False,
        "pref_beta": 0.1,
        "max_grad_norm": 0.0,
        "optim": "sgd",
        "learning_rate": 1e-9,
    }
    ours = train(**common, uni_dpo_qual_eta=0.0, uni_dpo_perf_gamma=0.0, uni_dpo_nll_lambda=0.0)
    stock = train(**common, pref_loss="sigmoid")
    for name in ("loss", "grad_norm"):
        (half,), (whole,) = steps(ours, name), steps(stock, name)
        assert half == pytest.approx([value / 2 for value in whole], rel=1e-6)


def test_batch_and_accumulation_give_one_trajectory(train: Any) -> None:
    names = ("loss", "grad_norm", "uni_dpo/w_qual", "uni_dpo/w_perf", "uni_dpo/nll_active", "uni_dpo/score_margin")
    whole = train(per_device_train_batch_size=4)
    pieces = train(per_device_train_batch_size=1, gradient_accumulation_steps=4)
    for name, expected, found in zip(names, steps(whole, *names), steps(pieces, *names), strict=True):
        assert found == pytest.approx(expected, rel=1e-3, abs=1e-5), name


def test_resuming_continues_the_trajectory(train: Any, tmp_path: Path) -> None:
    out = tmp_path / "resumed"
    whole = train(output_dir=str(out), save_strategy="steps", save_steps=2, num_train_epochs=2)
    resumed = train(
        output_dir=str(out),
        overwrite_output_dir=False,
        num_train_epochs=2,
        resume_from_checkpoint=str(out / "checkpoint-2"),
    )
    assert len(steps(whole, "loss")[0]) == 8
    for name in ("loss", "grad_norm", "uni_dpo/w_perf"):
        assert steps(resumed, name)[0] == pytest.approx(steps(whole, name)[0], rel=1e-4, abs=1e-7), name


BEST = {
    "val_size": 0.25,
    "eval_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "load_best_model_at_end": True,
    "metric_for_best_model": "eval_rewards/chosen",
    "greater_is_better": False,
    "max_steps": 3,
    "learning_rate": 0.05,
}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(next(folder.glob("*model.safetensors")))


@pytest.mark.parametrize("tuned", [{}, {"finetuning_type": "lora", "lora_rank": 4}], ids=["full", "lora"])
def test_the_best_checkpoint_is_what_is_saved_at_the_end(train: Any, tmp_path: Path, tuned: dict[str, Any]) -> None:
    """The metric's direction is turned where the last step happens to be the best one, so that another is asked for."""
    out = tmp_path / "best"
    for greater in (False, True):
        train(output_dir=str(out), **(BEST | tuned | {"greater_is_better": greater}))
        state = json.loads((out / "trainer_state.json").read_text())
        best, last = Path(state["best_model_checkpoint"]), out / "checkpoint-3"
        if best != last:
            break
    final, wanted, latest = weights(out), weights(best), weights(last)
    assert final.keys() == wanted.keys()
    assert [name for name in final if not torch.equal(final[name], wanted[name])] == []
    assert any(not torch.equal(final[name], latest[name]) for name in final)


def test_a_stock_loss_says_which_tensors_it_leaves_out(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from uni_dpo.llamafactory import trainer

    said: list[str] = []
    monkeypatch.setattr(trainer.logger, "warning_rank0", said.append)
    train(**BEST, pref_loss="sigmoid")
    assert sum("tensors of" in line and "mixture" in line for line in said) == (transformers.__version__ >= "5")


@pytest.fixture
def sft_adapter(train: Any, tmp_path: Path) -> Path:
    """An adapter that is far from the identity."""
    train(finetuning_type="lora", lora_rank=4, learning_rate=0.05, output_dir=str(tmp_path / "sft"))
    return tmp_path / "sft"


@pytest.mark.parametrize("pair_forward", ["shared_prefix", "ordinary"])
@pytest.mark.parametrize("precompute", [False, True], ids=["", "precomputed"])
def test_the_reference_is_the_model_before_this_training(
    train: Any, sft_adapter: Path, tiny_qwen2_vl: Path, tmp_path: Path, pair_forward: str, precompute: bool
) -> None:
    """Policy and reference are equal at the first step; with a step that goes far, only the policy moves."""
    log = train(
        finetuning_type="lora",
        adapter_name_or_path=str(sft_adapter),
        pair_forward=pair_forward,
        precompute_ref_log_probs=precompute,
        ref_cache_dir=str(tmp_path / "cache"),
        disable_shuffling=True,
        tokenized_path=str(tmp_path / "tokens"),
        learning_rate=0.05,
    )
    chosen, margins, logps = steps(log, "rewards/chosen", "rewards/margins", "logps/chosen")
    tolerance = 1e-5 if precompute else 0.0  # whatever pairs meet in a batch when they are computed beforehand
    assert margins[0] == pytest.approx(0.0, abs=tolerance)
    assert abs(margins[-1]) > 0.01
    naive = NaiveRun(tiny_qwen2_vl, tmp_path / "tokens", average=True, lr=0.0)
    start = PeftModel.from_pretrained(naive.reference, sft_adapter)
    rows = [row for at, row in enumerate(naive.rows) if at < 4 or at >= len(naive.rows) - 4]
    with torch.no_grad():
        expected = [naive.answer_logp(start, row, "chosen").item() for row in rows]
    for at, part in ((0, expected[:4]), (-1, expected[4:])):
        reference = logps[at] - chosen[at] / 2.0  # rewards are β times the log-ratio
        assert reference == pytest.approx(sum(part) / 4, abs=1e-4)
    saved = weights(tmp_path / "out")
    assert not any("reference" in name for name in saved)
    assert not (tmp_path / "out" / "reference").exists()
    assert saved.keys() == weights(sft_adapter).keys()


def test_a_new_adapter_starts_from_the_merged_one(train: Any, sft_adapter: Path) -> None:
    adapted = {"finetuning_type": "lora", "lora_rank": 4, "adapter_name_or_path": str(sft_adapter)}
    (margins,) = steps(train(**adapted, create_new_adapter=True), "rewards/margins")
    assert margins[0] == 0.0


def test_a_stock_loss_says_that_its_reference_is_another_model(
    train: Any, sft_adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uni_dpo.llamafactory import workflow

    said: list[str] = []
    monkeypatch.setattr(workflow.logger, "warning_rank0", said.append)
    train(finetuning_type="lora", adapter_name_or_path=str(sft_adapter), pref_loss="sigmoid", max_steps=1)
    assert any("create_new_adapter: true" in line for line in said)


def test_metrics_weigh_every_pair_alike(train: Any, pair_data: Any) -> None:
    """Batches of 3, 3, 3, 3, 3 and 1 pairs in one log line: the mean over pairs, not over batches."""
    log = train(per_device_train_batch_size=3, logging_steps=6)
    rows = json.loads((pair_data.folder / "mixed.json").read_text())
    margins = [row["score_chosen"] - row["score_rejected"] for row in rows]
    assert steps(log, "uni_dpo/score_margin") == [[pytest.approx(sum(margins) / len(margins), rel=1e-5)]]


def test_evaluation_logs_the_terms_too(train: Any) -> None:
    log = train(val_size=0.25, eval_strategy="epoch", per_device_eval_batch_size=2)
    evaluated = next(line for line in log if "eval_loss" in line)
    assert 0.5 < evaluated["eval_uni_dpo/w_qual"] < 1
    assert 0 < evaluated["eval_uni_dpo/w_perf"] < 1
    assert evaluated["eval_uni_dpo/nll_active"] in (0, 0.25, 0.5, 0.75, 1)
    assert 0 < evaluated["eval_loss"] < 50


@pytest.mark.parametrize(
    "settings",
    [
        {"finetuning_type": "lora", "lora_rank": 4},
        {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
        {"pref_ftx": 0.5},
        {"ld_alpha": 0.5, "dpo_average_log_prob": False},
        {"bf16": True},
        {"streaming": True, "max_steps": 2, "dataloader_num_workers": 1},
        {"streaming": True, "max_steps": 2},
        {"gradient_accumulation_steps": 2, "disable_gradient_checkpointing": True},
    ],
    ids=lambda settings: "-".join(settings),
)
def test_trains_beside_llamafactorys_own_settings(train: Any, settings: dict[str, Any]) -> None:
    losses, w_qual = steps(train(**settings), "loss", "uni_dpo/w_qual")
    assert len(losses) >= 2
    assert all(0 < loss < 50 for loss in losses)
    assert all(0.5 < weight < 1 for weight in w_qual)


def test_plot_loss_draws_the_terms(train: Any, tmp_path: Path) -> None:
    train(plot_loss=True, output_dir=str(tmp_path / "plots"))
    for name in ("w_qual", "w_perf", "nll_active", "score_margin"):
        assert (tmp_path / "plots" / f"training_uni_dpo_{name}.png").stat().st_size > 1000


STOCK_RUN = """
import json, sys, torch
torch.set_num_threads(1)
from llamafactory.train.tuner import run_exp
for config in json.load(sys.stdin):
    run_exp(config)
"""


def test_stock_losses_are_untouched_to_the_last_bit(train: Any, config: Any, tmp_path: Path) -> None:
    """A process that never heard of this plugin trains to the very same numbers, scores in the file or not."""
    losses = ("sigmoid", "ipo", "simpo", "orpo")
    settings = {loss: {"pref_loss": loss, "output_dir": str(tmp_path / f"stock-{loss}")} for loss in losses}
    ours_only = ("uni_dpo_nll_lambda",)
    runs = [{key: value for key, value in config(**settings[loss]).items() if key not in ours_only} for loss in losses]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", STOCK_RUN], input=json.dumps(runs), text=True, check=True, env=environment)
    for loss in losses:
        stock = json.loads((tmp_path / f"stock-{loss}" / "trainer_state.json").read_text())["log_history"]
        registered = train(pref_loss=loss)
        names = [name for name in stock[0] if name != "epoch"]
        assert not any(name.startswith("uni_dpo") for name in registered[0])
        assert steps(registered, *names) == steps(stock, *names), loss


@pytest.mark.parametrize(("loss", "average"), [("sigmoid", True), ("simpo", False)])
def test_an_explicit_average_wins_for_stock_losses_too(train: Any, loss: str, average: bool) -> None:
    (own,) = steps(train(pref_loss=loss), "logps/chosen")
    (explicit,) = steps(train(pref_loss=loss, dpo_average_log_prob=average), "logps/chosen")
    shorter, longer = (explicit, own) if average else (own, explicit)
    assert all(4 * abs(a) < abs(b) for a, b in zip(shorter[:1], longer[:1], strict=True))
