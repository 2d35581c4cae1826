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
        ({"loss_type": ["uni_dpo", "sft"]}, "loss_type"),
        ({"uni_dpo_perf_gamma": -1.0}, "gamma"),
        ({"beta": 0.0}, "beta"),
    ],
)
def test_what_cannot_work_is_refused_by_name(settings: Callable[..., Any], change: dict[str, Any], word: str) -> None:
    if not all(hasattr(UniDPOConfig, name) for name in change if name != "loss_type"):
        pytest.skip("this TRL has no such setting")
    with pytest.raises(UniDPOError, match=word):
        settings(**change)
