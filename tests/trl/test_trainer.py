"""Training with TRL: the loss by the book, the images where they belong, TRL's own losses untouched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import trl
from datasets import Dataset

from uni_dpo.errors import UniDPOError
from uni_dpo.trl import UniDPOTrainer

Settings = Callable[..., Any]
Rows = list[dict[str, Any]]
TRL_1 = trl.__version__.startswith("1.")
TERMS = {"uni_dpo/w_qual", "uni_dpo/w_perf", "uni_dpo/nll_active", "uni_dpo/score_margin"}


def losses(trainer: Any) -> list[float]:
    trainer.train()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


def naive_logp(model: Any, prompt: torch.Tensor, answer: torch.Tensor, average: bool, **images: Any) -> torch.Tensor:
    """One sequence, no padding, float64."""
    ids = torch.cat([prompt, answer])[None]
    if images:
        images["mm_token_type_ids"] = (ids == model.config.image_token_id).int()
    logits = model(input_ids=ids, **images).logits[0, len(prompt) - 1 : -1]
    logps = logits.log_softmax(-1).gather(1, answer[:, None])
    return logps.mean() if average else logps.sum()


def naive_loss(policy: Any, reference: Any, batch: dict[str, Any], pairs: Rows, average: bool) -> torch.Tensor:
    """Uni-DPO by the paper's formula with β 2, η 0.7, τ_ref 2, γ 3, λ 0.2, τ_good 2.5."""
    found, patches, images = [], 0, 0
    token = getattr(policy.config, "image_token_id", None)
    for row, (prompt, *answers) in enumerate(pairs):
        seen = {}
        if token is not None and (count := int((prompt == token).sum()) // 4):
            seen["image_grid_thw"] = batch["image_grid_thw"][images : images + count]
            seen["pixel_values"] = batch["pixel_values"][patches : patches + 16 * count].double()
            images, patches = images + count, patches + 16 * count
        policy_w, policy_l = (naive_logp(policy, prompt, answer, average, **seen) for answer in answers)
        with torch.no_grad():
            ref_w, ref_l = (naive_logp(reference, prompt, answer, average, **seen) for answer in answers)
        good, bad = batch["score_chosen"][row].double(), batch["score_rejected"][row].double()
        weight = (0.7 * (good - bad)).sigmoid() * (1 - (2 * (policy_w - policy_l) - 2).sigmoid()) ** 3
        preference = -(2 * (policy_w - policy_l - ref_w + ref_l)).sigmoid().log()
        active = bool(ref_w > policy_w) and bool(good >= 2.5)
        found.append(weight * preference - 0.2 * active * policy_w)
    return torch.stack(found).mean()


@pytest.fixture(params=["text", "images"])
def trained(
    request: pytest.FixtureRequest, tiny_text: Path, tiny_qwen2_vl: Path, text_rows: Rows, image_rows: Rows
) -> tuple[Path, Rows]:
    """A checkpoint and rows that it can train on."""
    return (tiny_text, text_rows) if request.param == "text" else (tiny_qwen2_vl, image_rows)


@pytest.mark.parametrize("average", [True, False])
def test_loss_and_gradient_are_those_of_the_formula(
    trained: tuple[Path, Rows],
    settings: Settings,
    average: bool,
    pairs_in: Callable[..., Any],
    step: Callable[..., Any],
) -> None:
    model, rows = trained
    config = settings(uni_dpo_nll_lambda=0.2, average_log_prob=average)
    trainer = UniDPOTrainer(str(model), args=config, train_dataset=Dataset.from_list(rows))
    trainer.train()
    batch = next(iter(trainer.get_train_dataloader()))
    policy, reference = trainer.model.double().eval(), trainer.ref_model.double().eval()
    batch = {name: value.double() if value.is_floating_point() else value for name, value in batch.items()}
    policy.zero_grad()
    loss, _ = step(trainer, policy, batch)
    loss.backward()
    gradient = {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad()
    expected = naive_loss(policy, reference, batch, pairs_in(batch), average)
    expected.backward()
    # The head of TRL 1.x works in float32 whatever it is given.
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5 if TRL_1 else 1e-6)
    for name, parameter in policy.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-5, atol=1e-7)


def test_it_learns_and_logs_the_terms(trained: tuple[Path, Rows], settings: Settings) -> None:
    model, rows = trained
    data = Dataset.from_list(rows)
    config = settings(num_train_epochs=3, eval_strategy="epoch")
    trainer = UniDPOTrainer(str(model), args=config, train_dataset=data, eval_dataset=data)
    found = losses(trainer)
    assert found[-1] < found[0] / 2
    lines = trainer.state.log_history
    assert lines[0].keys() >= TERMS
    evaluations = [line for line in lines if "eval_loss" in line]
    assert evaluations[-1].keys() >= {f"eval_{name}" for name in TERMS}
    assert evaluations[-1]["eval_rewards/accuracies"] == 1.0


def test_the_reference_computed_beforehand_gives_the_same_losses(
    trained: tuple[Path, Rows], settings: Settings
) -> None:
    model, rows = trained
    data = Dataset.from_list(rows)

    def trainer(early: bool) -> Any:
        return UniDPOTrainer(str(model), args=settings(precompute_ref_log_probs=early), train_dataset=data)

    if "images" in rows[0] and TRL_1:
        with pytest.raises(UniDPOError, match="precompute_ref_log_probs"):
            trainer(True)
        return
    runs = [losses(trainer(early)) for early in (False, True)]
    assert runs[0] == pytest.approx(runs[1], rel=1e-4)


def test_adapters_train_against_the_model_below_them(trained: tuple[Path, Rows], settings: Settings) -> None:
    from peft import LoraConfig

    model, rows = trained
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    config = settings(num_train_epochs=4, learning_rate=1e-2)
    trainer = UniDPOTrainer(str(model), args=config, train_dataset=Dataset.from_list(rows), peft_config=adapter)
    found = losses(trainer)
    assert trainer.ref_model is None
    assert trainer.state.log_history[0]["rewards/margins"] == 0.0
    assert found[-1] < found[0]


def test_with_a_loss_of_trls_it_is_trls_trainer(tiny_text: Path, text_rows: Rows, tmp_path: Path) -> None:
    """To the last bit, and no score is asked for."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    runs = []
    for kind in (DPOTrainer, UniDPOTrainer):
        model = AutoModelForCausalLM.from_pretrained(tiny_text, dtype=torch.float32)
        model.warnings_issued = {}
        config = DPOConfig(
            output_dir=str(tmp_path),
            bf16=False,
            use_cpu=True,
            logging_steps=1,
            report_to="none",
            per_device_train_batch_size=4,
            learning_rate=1e-3,
            save_strategy="no",
        )
        rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in text_rows]
        tokenizer = AutoTokenizer.from_pretrained(tiny_text)
        runs.append(losses(kind(model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)))
    assert runs[0] == runs[1]


def test_data_without_scores_are_refused(tiny_text: Path, text_rows: Rows, settings: Settings) -> None:
    rows = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in text_rows]
    with pytest.raises(UniDPOError, match="train dataset has no column 'score_chosen'"):
        UniDPOTrainer(str(tiny_text), args=settings(), train_dataset=Dataset.from_list(rows))


def test_the_same_seed_gives_the_same_run(trained: tuple[Path, Rows], settings: Settings) -> None:
    model, rows = trained
    data = Dataset.from_list(rows)
    runs = [losses(UniDPOTrainer(str(model), args=settings(), train_dataset=data)) for _ in range(2)]
    assert runs[0] == runs[1]


@pytest.mark.parametrize("adapters", [False, True], ids=["whole model", "adapters"])
def test_a_stopped_run_goes_on_as_if_it_had_not_stopped(
    trained: tuple[Path, Rows], settings: Settings, adapters: bool
) -> None:
    from peft import LoraConfig

    model, rows = trained
    config = settings(num_train_epochs=2, save_strategy="steps", save_steps=2, lr_scheduler_type="constant")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM") if adapters else None

    def trainer() -> Any:
        torch.manual_seed(0)
        return UniDPOTrainer(str(model), args=config, train_dataset=Dataset.from_list(rows), peft_config=lora)

    whole = losses(trainer())
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(Path(config.output_dir) / "checkpoint-2"))
    assert [line["loss"] for line in resumed.state.log_history if "loss" in line] == pytest.approx(whole, rel=1e-5)


def test_a_run_that_starts_from_an_adapter_compares_with_it(
    trained: tuple[Path, Rows], settings: Settings, tmp_path: Path
) -> None:
    """The reference is the model before this training, its adapter included; what is saved is the trained one."""
    from peft import LoraConfig, PeftModel

    model, rows = trained
    data = Dataset.from_list(rows)
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    first = UniDPOTrainer(str(model), args=settings(learning_rate=0.05), train_dataset=data, peft_config=lora)
    losses(first)
    first.save_model(str(tmp_path / "sft"))
    base = type(first.model.get_base_model()).from_pretrained(model)
    start = PeftModel.from_pretrained(base, tmp_path / "sft", is_trainable=True)
    second = UniDPOTrainer(start, args=settings(learning_rate=0.05), train_dataset=data)
    second.train()
    margins = [line["rewards/margins"] for line in second.state.log_history if "loss" in line]
    assert margins[0] == 0.0
    assert margins[-1] != 0.0
    second.save_model(str(tmp_path / "out"))
    assert not (tmp_path / "out" / "reference").exists()


def test_the_best_checkpoint_is_what_is_saved_at_the_end(trained: tuple[Path, Rows], settings: Settings) -> None:
    from safetensors.torch import load_file

    model, rows = trained
    data = Dataset.from_list(rows)
    best = {"save_strategy": "steps", "save_steps": 1, "eval_strategy": "steps", "eval_steps": 1}
    best |= {"load_best_model_at_end": True, "max_steps": 3, "learning_rate": 0.02}
    for greater in (False, True):
        config = settings(**best, metric_for_best_model="eval_rewards/chosen", greater_is_better=greater)
        trainer = UniDPOTrainer(str(model), args=config, train_dataset=data, eval_dataset=data)
        trainer.train()
        if not trainer.state.best_model_checkpoint.endswith("-3"):
            break
    trainer.save_model(config.output_dir)
    final = load_file(Path(config.output_dir) / "model.safetensors")
    wanted = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    assert [name for name in final if not torch.equal(final[name], wanted[name])] == []
