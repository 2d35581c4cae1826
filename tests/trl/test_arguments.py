"""Settings: the published ones by default, TRL's for TRL's losses, and none that means nothing."""

from collections.abc import Callable
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.objective import UniDPOConfig as Objective
from uni_dpo.trl import UniDPOConfig


def test_the_default_is_the_published_recipe(settings: Callable[..., Any]) -> None:
    config = settings()
    assert config.uses_uni_dpo
    assert config.average_log_prob
    assert config.objective() == Objective(beta=2.0, eta=0.7, tau_ref=2.0, gamma=3.0, nll_lambda=0.001, tau_good=2.5)


@pytest.mark.parametrize("loss", ["sigmoid", ["sigmoid", "sft"]])
def test_other_losses_keep_the_beta_of_trl(settings: Callable[..., Any], loss: Any) -> None:
    config = settings(loss_type=loss)
    assert not config.uses_uni_dpo
    assert config.beta == 0.1


def test_a_beta_that_was_set_stays(settings: Callable[..., Any]) -> None:
    assert settings(beta=0.5).objective().beta == 0.5
    assert settings(beta=0.5, loss_type="sigmoid").beta == 0.5


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"label_smoothing": 0.1}, "label_smoothing"),
        ({"reference_free": True}, "reference_free"),
        ({"use_liger_loss": True}, "use_liger_loss"),
        ({"f_divergence_type": "js_divergence"}, "f_divergence_type"),
        ({"loss_type": ["uni_dpo", "apo_zero"]}, "loss_type.apo_zero: 'apo_zero' is no preference loss"),
        ({"loss_type": ["uni_dpo", "sft"], "loss_weights": [1.0]}, "loss_weights: one weight for each of uni_dpo, sft"),
        ({"loss_type": ["uni_dpo:1"], "loss_weights": [1.0]}, "loss_weights: loss_type has the weights already"),
        ({"loss_type": {"uni_dpo": 1, "sft": -1}}, "loss_type.sft"),
        ({"loss_type": "uni-dpo"}, "loss_type: 'uni-dpo' is no loss of TRL's or ours; did you mean 'uni_dpo'"),
        ({"uni_dpo_perf_gamma": -1.0}, "gamma"),
        ({"beta": 0.0}, "beta"),
    ],
)
def test_what_cannot_work_is_refused_by_name(settings: Callable[..., Any], change: dict[str, Any], word: str) -> None:
    if not all(hasattr(UniDPOConfig, name) for name in change if name != "loss_type"):
        pytest.skip("this TRL has no such setting")
    with pytest.raises(UniDPOError, match=word):
        settings(**change)


MIXED = {"uni_dpo": 1.0, "sft": 0.1, "bco_pair": 0.2}
OURS_AND_TRLS = [
    {"loss_type": {"uni_dpo": 1, "sft": 0.1, "bco": 0.2}},
    {"loss_type": "uni_dpo: 1, sft: 0.1, bco: 0.2"},
    {"loss_type": ["uni_dpo=1", "sft=0.1", "bco_pair=0.2"]},
    {"loss_type": ["uni_dpo", "sft", "bco_pair"], "loss_weights": [1.0, 0.1, 0.2]},
]


@pytest.mark.parametrize("given", OURS_AND_TRLS, ids=["mapping", "text", "words", "trl's"])
def test_losses_with_weights_mean_one_thing_however_they_are_written(
    settings: Callable[..., Any], given: dict[str, Any]
) -> None:
    config = settings(**given)
    assert config.losses == MIXED
    assert config.loss_plan().betas == {"uni_dpo": 2.0, "sft": 0.1, "bco_pair": 0.1}
    assert config.loss_plan().averages == {"uni_dpo": True, "sft": True, "bco_pair": False}
    again = settings(loss_type=config.loss_type, loss_weights=config.loss_weights)
    assert again.losses == MIXED
    assert settings(**given, beta=0.5, average_log_prob=False).loss_plan().betas == dict.fromkeys(MIXED, 0.5)


@pytest.mark.parametrize(
    ("given", "losses"),
    [
        ({"loss_type": ["uni_dpo", "sft"]}, {"uni_dpo": 1.0, "sft": 1.0}),
        ({"loss_type": {"sigmoid": 0.8, "bco": 0.2}}, {"sigmoid": 0.8, "bco_pair": 0.2}),
        ({"loss_type": "simpo"}, {"simpo": 1.0}),
        ({"loss_type": {"sigmoid": 1}}, {"sigmoid": 1.0}),
        ({"loss_type": "sigmoid"}, None),
        ({"loss_type": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]}, None),
        ({"loss_type": ["apo_zero"]}, None),
    ],
)
def test_whose_code_makes_a_loss(settings: Callable[..., Any], given: dict[str, Any], losses: Any) -> None:
    assert settings(**given).losses == losses
