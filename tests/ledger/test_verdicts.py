"""What is said of runs that went well and badly, as `benchmarks/recorded_runs.py` recorded them."""

import json
import statistics
import string
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.ledger.reading import Evidence
from uni_dpo.ledger.summary import GROUPS
from uni_dpo.ledger.verdicts import BAD, GOOD, GROUP_RULES, METRICS, RULES, SENTENCES, judge

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


def numbers_of(run: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Metric → every number that a sentence about it may hold, worked out by plain loops."""
    settings, windows, log, groups = run["settings"], run["windows"], run["log"], run["groups"]

    def means(name: str) -> list[float]:
        return [window[name]["mean"] for window in windows if name in window]

    def late(values: list[float]) -> float:
        count = max(1, len(values) // 6)
        return sum(values[-count:]) / count

    def middle(name: str, at: int) -> float:
        return statistics.median(window[name]["q"][at] for window in windows)

    def series(name: str) -> list[tuple[float, int]]:
        return [(line[name], line["step"]) for line in log if name in line]

    chosen = means("policy_chosen")
    drift = means("chosen_drift") or [value - chosen[0] for value in chosen]
    if not settings.get("averaged", True):
        drift = [value / (sum(means("tokens_chosen")) / len(means("tokens_chosen"))) for value in drift]
    since = [window["step"] for window, value in zip(windows, drift, strict=True) if value < -0.1]
    accuracies = [window["accuracy"] for window in windows]
    norms, losses = series("grad_norm"), series("loss")
    rate = settings["learning_rate"]
    long, short = means("tokens_chosen"), means("tokens_rejected")
    counted = sum(groups[name] for name in ("learnt", "still to learn", "never learnt", "forgotten"))
    numbers: dict[str, dict[str, float]] = {
        "chosen": {"lost": -late(drift), "gained": late(drift), "since": since[0] if since else 0},
        "loss": {"first": losses[0][0], "last": late([value for value, _ in losses]), "peak": max(losses)[0]},
        "accuracy": {"share": late(accuracies)},
        "grad_norm": {"middle": statistics.median(value for value, _ in norms), "peak": max(norms)[0]},
        "labels": {"count": groups["suspect label"], "total": counted, "share": groups["suspect label"] / counted},
        "length": {
            "share": sum(window["chosen_longer"] for window in windows) / len(windows),
            "ratio": sum(long) / sum(short),
            "chosen": sum(long) / len(long),
            "rejected": sum(short) / len(short),
        },
    }
    if settings.get("has_reference", True):
        last = windows[-1]["reward_margin"]["q"]
        moved = {"moved": max(abs(last[0]), abs(last[4])), "steps": max(line["step"] for line in log)}
        numbers["learning_rate"] = moved | {"rate": rate if max(abs(last[0]), abs(last[4])) >= 0.005 else 10 * rate}
    if settings["pref_loss"] == "uni_dpo":
        margins, gap = [settings["beta"] * value for value in means("policy_margin")], middle("score_margin", 2)
        numbers["w_qual"] = {"low": middle("w_qual", 0), "high": middle("w_qual", 4), "eta": settings["eta"]}
        numbers["w_qual"]["better"] = 2 / max(abs(gap), 1e-6)
        numbers["w_perf"] = {"first": means("w_perf")[0], "last": late(means("w_perf")), "start": margins[0]}
        numbers["w_perf"] |= {"margin": late(margins), "threshold": settings["tau_ref"]}
        numbers["nll"] = {"threshold": settings["tau_good"], "middle": middle("score_chosen", 2)}
        numbers["nll"] |= {"share": late(means("nll_active")), "weight": settings["nll_lambda"]}
        numbers["nll"]["more"] = 10 * settings["nll_lambda"]
    if outside := [line["eval_rewards/accuracies"] for line in log if "eval_rewards/accuracies" in line]:
        numbers["held_out"] = {"outside": outside[-1], "inside": late(accuracies)}
    return numbers


SET = {"rate", "weight", "step"}
"""What a sentence advises, which the next test looks at, and the step of a peak."""


@pytest.mark.parametrize("name", SAID)
def test_every_number_of_a_sentence_is_worked_out_again(name: str) -> None:
    run = json.loads((RECORDED / f"{name}.json").read_text())
    expected = numbers_of(run)
    verdicts = judge(recorded(name))
    assert len(verdicts) >= 5
    for verdict in verdicts:
        said = {place for _, place, _, _ in string.Formatter().parse(SENTENCES[verdict.key]["en"]) if place}
        for place in said - (SET - expected.get(verdict.metric, {}).keys()):
            assert verdict.numbers[place] == pytest.approx(expected[verdict.metric][place], rel=1e-9), verdict


def test_what_to_set_follows_from_what_was_set() -> None:
    """A tenth or a third of the learning rate, ten times the weight."""
    sets = {
        "learning_rate_too_high": ("chosen", "rate", 0.1),
        "dpo_collapse": ("chosen", "rate", 1 / 3),
        "lambda_too_small": ("nll", "more", 10.0),
    }
    for name, (metric, place, times) in sets.items():
        evidence = recorded(name)
        setting = "learning_rate" if place == "rate" else "nll_lambda"
        (said,) = [verdict.numbers[place] for verdict in judge(evidence) if verdict.metric == metric]
        assert said == pytest.approx(times * evidence.settings[setting])


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
