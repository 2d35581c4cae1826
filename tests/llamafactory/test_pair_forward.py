"""Whole runs of LlamaFactory with one sequence per pair against the same runs with two."""

from pathlib import Path
from typing import Any

import pytest
import torch
from llamafactory.extras.env import VERSION
from torch import nn

LORA = {"finetuning_type": "lora", "lora_rank": 4, "lora_target": "q_proj,v_proj"}
METRICS = ("loss", "grad_norm", "rewards/chosen", "rewards/margins", "logps/chosen", "logps/rejected")


def trajectory(log: list[dict[str, Any]], *names: str) -> torch.Tensor:
    """(steps, names), in float64."""
    lines = [line for line in log if "loss" in line]
    return torch.tensor([[line[name] for name in names] for line in lines], dtype=torch.float64)


def compare(train: Any, *, steps: int, tolerance: float = 1e-4, **settings: Any) -> None:
    settings = {"max_steps": steps, "per_device_train_batch_size": 2, "learning_rate": 1e-4} | settings
    ordinary = trajectory(train(pair_forward="ordinary", **settings), *METRICS)
    shared = trajectory(train(pair_forward="shared_prefix", **settings), *METRICS)
    assert len(shared) == steps
    torch.testing.assert_close(shared, ordinary, rtol=tolerance, atol=tolerance / 10)


def test_twenty_steps_on_the_digits_are_the_same(train: Any) -> None:
    """Text-only, one-image and two-image pairs, odd lengths, language model and head fully tuned."""
    compare(train, steps=20)


@pytest.mark.parametrize(
    "settings",
    [
        LORA,
        {"freeze_vision_tower": False, "freeze_multi_modal_projector": False},
        {"disable_gradient_checkpointing": True},
        {"pref_loss": "sigmoid", "ld_alpha": 0.3},
        {"pref_loss": "orpo"},
        {"pref_loss": "simpo", "pref_ftx": 0.1},
        # λ's condition is a tie where nothing has moved yet, and sums round coarsely.
        {"dpo_average_log_prob": False, "pref_beta": 0.05, "uni_dpo_nll_lambda": 0.0},
        {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2},
    ],
    ids=lambda settings: " ".join(f"{name}={value}" for name, value in settings.items()),
)
def test_other_settings_are_the_same(train: Any, settings: dict[str, Any]) -> None:
    compare(train, steps=3, **settings)


def test_evaluation_is_the_same(train: Any) -> None:
    settings = {"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1, "val_size": 6}
    found = []
    for mode in ("ordinary", "shared_prefix"):
        lines = [line for line in train(pair_forward=mode, **settings) if "eval_loss" in line]
        found.append([[line[f"eval_{name}"] for name in ("loss", "rewards/margins", "logps/chosen")] for line in lines])
    assert len(found[0]) == 2
    torch.testing.assert_close(torch.tensor(found[1]), torch.tensor(found[0]), rtol=1e-4, atol=1e-5)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many patches each run of the vision tower saw."""
    from transformers.models.qwen2_vl import modeling_qwen2_vl as modeling

    seen: list[int] = []
    tower = modeling.Qwen2VisionTransformerPretrainedModel
    forward = tower.forward

    def counting(self: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append(len(hidden_states))
        return forward(self, hidden_states, *args, **kwargs)

    monkeypatch.setattr(tower, "forward", counting)
    return seen


@pytest.mark.parametrize("tuning", [{}, LORA], ids=["full", "lora"])
def test_policy_and_reference_look_at_an_image_once(train: Any, looks: list[int], tuning: dict[str, Any]) -> None:
    settings = {"max_steps": 1, "disable_shuffling": True, **tuning}
    train(pair_forward="ordinary", **settings)
    ordinary = looks.copy()
    looks.clear()
    train(pair_forward="shared_prefix", **settings)
    assert len(ordinary) == 2
    # LlamaFactory 0.9.4 does not freeze the tower that it says it freezes: then each model looks for itself.
    frozen = VERSION != "0.9.4" or tuning
    assert looks == [ordinary[0] // 2] * (1 if frozen else 2)


def test_a_trained_tower_looks_for_itself(train: Any, looks: list[int]) -> None:
    train(pair_forward="shared_prefix", max_steps=1, freeze_vision_tower=False)
    assert len(looks) == 2


@pytest.mark.parametrize(
    ("settings", "shares"),
    [
        ({}, True),
        ({"pref_loss": "sigmoid"}, False),
        ({"pref_loss": "sigmoid", "pair_forward": "shared_prefix"}, True),
        ({"pair_forward": "ordinary"}, False),
    ],
    ids=["uni_dpo", "sigmoid", "asked for", "not wanted"],
)
def test_auto_shares_for_uni_dpo_alone(
    train: Any, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], shares: bool
) -> None:
    from uni_dpo.llamafactory import pair_forward

    calls: list[bool] = []
    score = pair_forward.pair_scores
    monkeypatch.setattr(pair_forward, "pair_scores", lambda *a, **k: calls.append(True) or score(*a, **k))
    train(max_steps=1, **settings)
    assert bool(calls) == shares


def test_what_is_not_proved_says_so_and_trains(train: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from uni_dpo.llamafactory import pair_forward

    said: list[str] = []
    monkeypatch.setattr(pair_forward.logger, "warning_rank0", said.append)
    monkeypatch.setattr(pair_forward, "why_not_shared", lambda *_: "of the moon")
    fallen_back = trajectory(train(max_steps=2), *METRICS)
    assert said == ["pair_forward: two sequences per pair, because of the moon."]
    assert torch.equal(fallen_back, trajectory(train(max_steps=2, pair_forward="ordinary"), *METRICS))


@pytest.mark.parametrize(("wanted", "used"), [("sdpa", "uni_dpo_prefix"), ("flex_attention", "flex_attention")])
def test_both_models_attend_and_multiply_as_asked(tiny_qwen2_vl: Path, wanted: str, used: str) -> None:
    from transformers import Qwen2VLForConditionalGeneration

    from uni_dpo.llamafactory.pair_forward import PairForward
    from uni_dpo.matmul import OneDNNLinear

    policy, reference = (Qwen2VLForConditionalGeneration.from_pretrained(tiny_qwen2_vl) for _ in range(2))
    PairForward.choose(policy, reference, wanted)
    for model in (policy, reference):
        assert model.model.language_model.config._attn_implementation == used
        assert model.model.visual.config._attn_implementation == "sdpa"
        layers = [type(layer) for layer in model.model.modules() if isinstance(layer, nn.Linear)]
        assert {*layers} == {OneDNNLinear}
        assert type(model.lm_head) is nn.Linear


def test_sums_match_llamafactorys_with_ld_alpha() -> None:
    """`ResponseTokens.sum` against the function it stands in for, on labels with gaps."""
    from llamafactory.train.trainer_utils import get_batch_logps

    from uni_dpo.logprobs import ResponseTokens

    draw = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 13, (6, 17), generator=draw)
    labels[torch.rand(labels.shape, generator=draw) < 0.4] = -100
    logits = torch.randn(6, 17, 13, generator=draw, dtype=torch.float64)
    tokens = ResponseTokens.from_labels(labels)
    logps = logits.log_softmax(-1).flatten(0, 1)[tokens.predictor].gather(1, tokens.target[:, None])[:, 0]
    for alpha in (None, 0.0, 0.3, 1.0):
        expected, lengths = get_batch_logps(logits, labels, ld_alpha=alpha)
        torch.testing.assert_close(tokens.sum(logps, alpha), expected)
        assert torch.equal(tokens.lengths(), lengths)
