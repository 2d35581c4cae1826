"""Losses with weights: every way of writing them, and what is wrong with one said before torch is imported."""

import subprocess
import sys
from typing import Any

import pytest

from uni_dpo.errors import UniDPOError
from uni_dpo.settings.losses import compares, is_ours, read_losses, uses_uni_dpo, written
from uni_dpo.settings.training import check_early

MPO = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}


@pytest.mark.parametrize(
    "value",
    [
        MPO,
        {"dpo": 0.8, "bco": 0.2, "sft": 1},
        {**MPO, "uni_dpo": 0},
        "sigmoid: 0.8, bco_pair: 0.2, sft: 1",
        "dpo=0.8,bco=0.2,sft=1",
        '{"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1}',
        {"sigmoid:0.8": None, "bco_pair:0.2": None, "sft:1": None},
    ],
    ids=str,
)
def test_every_way_of_writing_says_the_same(value: Any) -> None:
    """The last one is what YAML makes of `{sigmoid:0.8,bco_pair:0.2,sft:1}`."""
    assert read_losses(value) == MPO
    assert written(value) == "sigmoid: 0.8, bco_pair: 0.2, sft: 1"
    assert written(written(value)) == written(value)
    assert (is_ours(value), uses_uni_dpo(value), compares(value)) == (True, False, True)


@pytest.mark.parametrize("name", ["uni_dpo", "sigmoid", "orpo", "simpo"])
def test_one_loss_of_weight_1_is_the_plain_loss(name: str) -> None:
    assert written({name: 1}) == written(f"{name}: 1.0") == written(name) == name


def test_a_bare_name_of_llamafactorys_is_its_own_code() -> None:
    assert not is_ours("hinge")
    assert is_ours({"hinge": 1})
    assert written("dpo") == "sigmoid"
    assert written("sft") == "sft: 1"
    assert not compares({"simpo": 1, "sft": 0.1})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("uni_dop", "pref_loss: 'uni_dop' is no preference loss; did you mean 'uni_dpo'?"),
        ({"uni_dpo": 1, "stf": 1}, "pref_loss.stf: 'stf' is no preference loss; did you mean 'sft'?"),
        ({"uni_dpo": 1, "sft": -1}, "pref_loss.sft: -1.0 is out of range; it can be 0 or more"),
        ({"uni_dpo": 1, "sft": "much"}, "pref_loss.sft: the loss's weight is a number, not 'much'"),
        ({"uni_dpo": True, "sft": 1}, "pref_loss.uni_dpo: the loss's weight is a number, not True"),
        ({"uni_dpo": float("nan")}, "pref_loss.uni_dpo: nan is not a finite number"),
        ({"dpo": 1, "sigmoid": 1}, "pref_loss.sigmoid: this loss is given twice"),
        ({"uni_dpo": 0}, "pref_loss: no loss of {'uni_dpo': 0} has a weight above 0"),
        ({}, "pref_loss: no loss of {} has a weight above 0"),
        ("uni_dpo, sft", "pref_loss: give every loss a weight, as {uni_dpo: 1, sft: 0.1}; not 'uni_dpo, sft'"),
        (["uni_dpo"], "pref_loss: a loss, or losses with weights, as {uni_dpo: 1, sft: 0.1}; not ['uni_dpo']"),
        (None, "pref_loss: a loss, or losses with weights, as {uni_dpo: 1, sft: 0.1}; not None"),
    ],
    ids=str,
)
def test_a_fault_is_one_line(value: Any, message: str) -> None:
    with pytest.raises(UniDPOError) as refused:
        check_early({"stage": "dpo", "pref_loss": value})
    assert str(refused.value) == message


def test_it_is_said_before_torch_is_imported() -> None:
    script = (
        "import sys\nfrom uni_dpo.settings.training import check_early\n"
        "try: check_early(['--pref_loss', 'uni_dpo: 1, sfft: 0.1'])\nexcept ValueError as error: print(error)\n"
        "print('torch' in sys.modules, 'llamafactory' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "pref_loss.sfft: 'sfft' is no preference loss; did you mean 'sft'?",
        "False False",
    ]
