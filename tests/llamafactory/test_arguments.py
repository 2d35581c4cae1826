"""What may be set, what it defaults to, and what is refused."""

from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory import register
from uni_dpo.objective import UniDPOConfig


def arguments(**settings: Any) -> Any:
    register()
    from uni_dpo.llamafactory.arguments import UniDPOFinetuningArguments

    return UniDPOFinetuningArguments(**{"stage": "dpo", "pref_loss": "uni_dpo"} | settings)


def test_uni_dpo_defaults_to_the_published_recipe() -> None:
    found = arguments()
    assert found.uni_dpo_config() == UniDPOConfig(
        beta=2.0, eta=0.7, tau_ref=2.0, gamma=3.0, nll_lambda=0.001, tau_good=2.5
    )
    assert found.dpo_average_log_prob is True
    assert found.use_ref_model is True


@pytest.mark.parametrize("loss", ["sigmoid", "hinge", "ipo", "kto_pair", "orpo", "simpo"])
def test_other_losses_keep_llamafactorys_defaults(loss: str) -> None:
    from llamafactory.hparams import FinetuningArguments

    found, stock = arguments(pref_loss=loss), FinetuningArguments(stage="dpo", pref_loss=loss)
    assert found.dpo_average_log_prob is None
    assert {name: getattr(found, name) for name in vars(stock)} == vars(stock)


def test_explicit_values_win() -> None:
    found = arguments(pref_beta=0.1, dpo_average_log_prob=False, uni_dpo_tau_good=4.0)
    assert (found.pref_beta, found.dpo_average_log_prob, found.uni_dpo_config().tau_good) == (0.1, False, 4.0)


@pytest.mark.parametrize(
    "settings",
    [{"dpo_label_smoothing": 0.1}, {"pref_bco_weight": 0.5}, {"uni_dpo_qual_eta": -1.0}, {"pref_beta": 0.0}],
    ids=lambda settings: next(iter(settings)),
)
def test_what_means_nothing_is_refused_by_name(settings: dict[str, float]) -> None:
    name = next(iter(settings)).removeprefix("uni_dpo_").removeprefix("qual_").removeprefix("pref_")
    with pytest.raises(UniDPOError, match=name):
        arguments(**settings)


def test_megatron_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_MCA", "1")
    with pytest.raises(UniDPOError, match="USE_MCA"):
        arguments()


def test_flags_and_yaml_reach_the_same_arguments() -> None:
    register()
    from llamafactory.hparams import get_train_args

    common = {"model_name_or_path": "m", "stage": "dpo", "pref_loss": "uni_dpo", "output_dir": "o", "do_train": True}
    common |= {"dataset": "d", "uni_dpo_perf_gamma": 1.5, "dpo_average_log_prob": False, "report_to": "none"}
    flags = [part for name, value in common.items() for part in (f"--{name}", str(value))]
    assert get_train_args(dict(common))[3] == get_train_args(flags)[3]
    assert get_train_args(flags)[3].uni_dpo_perf_gamma == 1.5
