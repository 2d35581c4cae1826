"""What is said of runs that went well and badly, as `benchmarks/recorded_runs.py` recorded them."""

import json
import string
from pathlib import Path

import pytest

from uni_dpo.ledger.groups import GROUPS
from uni_dpo.ledger.verdicts import BAD, GOOD, RULES, Evidence, judge
from uni_dpo.ledger.words import METRICS, SENTENCES
from uni_dpo.ledger.words import RULES as GROUP_RULES

RECORDED = Path(__file__).parent / "recorded"
SAID = {
    "good": set(),
    "good_dpo": set(),
    "dpo_collapse": {"chosen_fall_other"},
    "no_nll": {"nll_off"},
    "lambda_too_small": {"nll_weak"},
    "tau_good_too_high": {"nll_unreached"},
    "eta_flat": {"quality_flat"},
    "tau_ref_too_low": {"performance_gone"},
    "tau_ref_too_high": {"performance_full"},
    "learning_rate_too_high": {"chosen_fall_fast"},
    "learning_rate_too_low": {"nothing_moves"},
    "swapped_labels": {"labels_doubted"},
    "length_bias": {"length_biased"},
    "equal_scores": {"scores_equal"},
}
"""Run → the sentences that are bad in it; `lambda_too_small` may say beside that chosen answers fall."""


def recorded(name: str) -> Evidence:
    return Evidence(**json.loads((RECORDED / f"{name}.json").read_text()))


def test_every_recorded_run_is_expected() -> None:
    assert {file.stem for file in RECORDED.glob("*.json")} == SAID.keys()


@pytest.mark.parametrize("name", SAID)
def test_the_fault_of_a_recorded_run_is_said_and_no_other(name: str) -> None:
    bad = {verdict.key for verdict in judge(recorded(name)) if verdict.state == BAD}
    assert bad - {"chosen_fall"} == SAID[name]
    assert ("chosen_fall" in bad) <= (name == "lambda_too_small")


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", SAID)
def test_sentences_give_their_numbers(name: str, language: str) -> None:
    for verdict in judge(recorded(name)):
        assert "{" not in verdict.sentence(language)
        assert verdict.metric in METRICS


def test_the_languages_say_the_same_numbers() -> None:
    for key, texts in SENTENCES.items():
        places = [
            sorted(name for _, name, _, _ in string.Formatter().parse(texts[language]) if name)
            for language in ("en", "zh")
        ]
        assert places[0] == places[1], key
    assert GROUP_RULES.keys() == set(GROUPS)


def test_nothing_is_said_of_a_run_that_has_just_begun() -> None:
    begun = Evidence({"pref_loss": "uni_dpo"}, [{"step": 2, "loss": 1.0}], [])
    assert judge(begun) == []


def test_what_is_missing_is_not_judged() -> None:
    bare = Evidence({"pref_loss": "sigmoid"}, [{"step": step, "loss": 1 / step} for step in range(1, 40)], [])
    assert [(verdict.metric, verdict.state) for verdict in judge(bare)] == [("loss", GOOD)]
    assert len(RULES) >= 10


def test_a_loss_that_is_no_number_is_bad() -> None:
    log = [{"step": step, "loss": 1.0 if step < 20 else float("nan")} for step in range(1, 40)]
    (verdict,) = judge(Evidence({"learning_rate": 1e-3}, log, []))
    assert (verdict.state, verdict.key, verdict.numbers["step"]) == (BAD, "loss_broken", 20)
    assert verdict.sentence() == (
        "the loss is no number from step 20 on: lower learning_rate to 1.0e-04, or set bf16 in place of fp16"
    )
