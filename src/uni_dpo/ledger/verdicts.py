"""What a run's numbers mean: one sentence per metric, with the number that it rests on and what to set.

Every rule is a function from `Evidence` to what is said of one metric, or to None where it has nothing to say.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from uni_dpo.ledger.reading import Evidence

_WORDS = json.loads(Path(__file__).with_name("words.json").read_text(encoding="utf-8"))
METRICS: dict[str, dict[str, str]] = _WORDS["metrics"]
"""What a verdict speaks of → its name in each language, `en` and `zh`."""
SENTENCES: dict[str, dict[str, str]] = _WORDS["sentences"]
"""Key of a sentence → its text in each language, with the places of its numbers: the number, then what to set."""
GROUP_RULES: dict[str, dict[str, str]] = _WORDS["rules"]
"""Group of pairs → its rule in each language."""
GOOD, WATCH, BAD = "good", "watch", "bad"
FALL, FALLING = 0.3, 0.1
"""Nats per token that chosen answers have lost against the reference where it is bad, and where it is to be watched."""
ENOUGH = 12
"""Steps before which nothing is said."""

Said = tuple[str, str, Mapping[str, Any]]
"""State, key and numbers of a `Verdict`."""


@dataclass(frozen=True)
class Verdict:
    """What one metric says.

    Attributes:
        metric: what it speaks of, a key of `METRICS`.
        state: `good`, `watch` or `bad`.
        key: the sentence, a key of `SENTENCES`.
        numbers: what stands in the sentence.
    """

    metric: str
    state: str
    key: str
    numbers: Mapping[str, Any]

    def sentence(self, language: str = "en") -> str:
        """Return the sentence in English (`en`) or Chinese (`zh`)."""
        return SENTENCES[self.key][language].format(**self.numbers)


def judge(evidence: Evidence) -> list[Verdict]:
    """Return every verdict on a run, the bad ones first; none before `ENOUGH` steps."""
    if evidence.steps < ENOUGH:
        return []
    found = [Verdict(metric, *said) for metric, rule in RULES.items() if (said := rule(evidence)) is not None]
    return sorted(found, key=lambda verdict: (BAD, WATCH, GOOD).index(verdict.state))


def chosen_answers(evidence: Evidence) -> Said | None:
    """Tell whether the chosen answers lost likelihood against the reference or, without one, against the beginning."""
    steps, drift = evidence.window_means("chosen_drift")
    if not len(drift):
        steps, chosen = evidence.window_means("policy_chosen")
        drift = chosen - chosen[0] if len(chosen) else chosen
    _, tokens = evidence.window_means("tokens_chosen")
    if len(drift) < 2:
        return None
    per_token = drift if evidence.settings.get("averaged", True) else drift / max(float(tokens.mean()), 1.0)
    last, below = _late(per_token), steps[per_token < -FALLING]
    numbers = {"lost": -last, "gained": last, "since": int(below[0]) if len(below) else 0, "rate": evidence.rate / 3}
    if not last < -FALLING:
        return GOOD, "chosen_hold" if last < 0 else "chosen_rise", numbers
    state = BAD if last < -FALL else WATCH
    if _tells_nothing_apart(evidence):
        return BAD, "chosen_fall_fast", numbers | {"rate": evidence.rate / 10}
    if not evidence.uses_uni_dpo:
        return state, "chosen_fall_other", numbers
    if _never_reached(evidence):
        return state, "chosen_fall_unheld", numbers
    return state, "chosen_fall", numbers | {"weight": 10 * evidence.setting("nll_lambda") or 0.001}


def nll(evidence: Evidence) -> Said | None:
    """Tell whether the NLL term acts where it is needed."""
    if not evidence.uses_uni_dpo:
        return None
    weight = evidence.setting("nll_lambda")
    _, drift = evidence.window_means("chosen_drift")
    falls = len(drift) > 0 and _late(drift) < -FALLING
    if weight == 0:
        return BAD if falls else WATCH, "nll_off", {}
    if _never_reached(evidence):
        middle = float(np.median([window["score_chosen"]["q"][2] for window in evidence.windows]))
        numbers = {"threshold": float(evidence.settings["tau_good"]), "middle": middle}
        return BAD if falls else WATCH, "nll_unreached", numbers
    _, active = evidence.window_means("nll_active")
    if not len(active):
        return None
    numbers = {"share": _late(active), "weight": weight, "more": 10 * weight}
    if falls and numbers["share"] > 0.5 and not _tells_nothing_apart(evidence):
        return BAD, "nll_weak", numbers
    return GOOD, "nll_acts", numbers


def _never_reached(evidence: Evidence) -> bool:
    """Whether no chosen answer is scored high enough for the NLL term."""
    tops = [spread[-1] for spread in evidence.spreads("score_chosen")]
    return bool(tops) and max(tops) < evidence.setting("tau_good", -np.inf)


def _tells_nothing_apart(evidence: Evidence) -> bool:
    """Whether less than half of the pairs are ranked rightly at the end, as after steps that were too large."""
    return len(evidence.windows) >= 3 and _late(evidence.accuracies) < 0.5


def quality(evidence: Evidence) -> Said | None:
    """Tell whether the quality weight tells pairs apart."""
    spreads, gaps = evidence.spreads("w_qual"), evidence.spreads("score_margin")
    if not spreads or not gaps:
        return None
    low, _, _, _, high = np.median(spreads, 0).tolist()
    gap_low, _, gap, _, gap_high = np.median(gaps, 0).tolist()
    if gap_high - gap_low < 1e-6 and abs(gap) < 1e-6:
        return BAD, "scores_equal", {}
    numbers = {"low": low, "high": high, "eta": evidence.setting("eta"), "better": 2 / max(abs(gap), 1e-6)}
    if high - low < 0.02 and low < 0.6:
        return BAD, "quality_flat", numbers
    return (WATCH, "quality_full", numbers) if low > 0.98 else (GOOD, "quality_tells", numbers)


def performance(evidence: Evidence) -> Said | None:
    """Tell whether the performance weight moves from pairs that are learnt to those that are not."""
    _, weights = evidence.window_means("w_perf")
    if len(weights) < 2 or not evidence.settings.get("gamma"):
        return None
    _, margin = evidence.window_means("policy_margin")
    beta = evidence.setting("beta", 1.0)
    numbers = {
        "first": float(weights[0]),
        "last": _late(weights),
        "threshold": evidence.setting("tau_ref"),
        "margin": beta * _late(margin),
        "start": beta * float(margin[0]),
    }
    if weights[0] < 0.02:
        return BAD, "performance_gone", numbers
    return (BAD, "performance_full", numbers) if weights.min() > 0.95 else (GOOD, "performance_moves", numbers)


def loss(evidence: Evidence) -> Said | None:
    """Tell whether the loss fell, and stayed a number."""
    steps, values = evidence.series("loss")
    if len(values) < 3:
        return None
    if broken := _broken(evidence, "loss", "loss_broken"):
        return broken
    first, last, peak = float(values[0]), _late(values), float(values.max())
    step = int(steps[values.argmax()])
    numbers = {"first": first, "last": last, "peak": peak, "step": step, "rate": evidence.rate / 10}
    if peak > 3 * first:
        return BAD, "loss_bursts", numbers
    return (BAD, "loss_rises", numbers) if last > 1.02 * first else (GOOD, "loss_falls", numbers)


def _broken(evidence: Evidence, metric: str, key: str) -> Said | None:
    """What to say of a metric that was no number at some step."""
    steps, values = evidence.series(metric)
    broken = steps[~np.isfinite(values)]
    return (BAD, key, {"step": int(broken[0]), "rate": evidence.rate / 10}) if len(broken) else None


def movement(evidence: Evidence) -> Said | None:
    """Tell whether the model moved away from the reference at all."""
    spreads = evidence.spreads("reward_margin")
    if len(spreads) < 2 or not evidence.settings.get("has_reference", True):
        return None
    moved = max(abs(spreads[-1][0]), abs(spreads[-1][-1]))
    if moved < 0.005:
        return BAD, "nothing_moves", {"moved": moved, "rate": 10 * evidence.rate, "steps": evidence.steps}
    return GOOD, "moves", {"moved": moved, "rate": evidence.rate}


def accuracy(evidence: Evidence) -> Said | None:
    """Tell whether the pairs are told apart, by the share whose reward margin is above 0."""
    if len(evidence.windows) < 3:
        return None
    numbers = {"share": _late(evidence.accuracies)}
    return (WATCH, "accuracy_low", numbers) if numbers["share"] < 0.65 else (GOOD, "accuracy_well", numbers)


def labels(evidence: Evidence) -> Said | None:
    """Tell whether many pairs have scores that the model contradicts all through training."""
    total = sum(evidence.groups.get(name, 0) for name in ("learnt", "still to learn", "never learnt", "forgotten"))
    if not total:
        return None
    suspects = evidence.groups.get("suspect label", 0)
    share = suspects / total
    numbers = {"share": share, "count": suspects, "total": total}
    if share > 0.05:
        return BAD if share > 0.15 else WATCH, "labels_doubted", numbers
    return GOOD, "labels_fit", numbers


def length(evidence: Evidence) -> Said | None:
    """Tell whether chosen answers are nearly always the longer, or nearly always the shorter ones."""
    longer = [window["chosen_longer"] for window in evidence.windows if "chosen_longer" in window]
    _, chosen = evidence.window_means("tokens_chosen")
    _, rejected = evidence.window_means("tokens_rejected")
    if not longer or not len(chosen):
        return None
    share, ratio = float(np.mean(longer)), float(chosen.mean() / max(rejected.mean(), 1.0))
    numbers = {"share": share, "ratio": ratio, "chosen": float(chosen.mean()), "rejected": float(rejected.mean())}
    biased = (share > 0.85 and ratio > 1.3) or (share < 0.15 and ratio < 1 / 1.3)
    return (BAD, "length_biased", numbers) if biased else (GOOD, "length_even", numbers)


def gradient(evidence: Evidence) -> Said | None:
    """Tell whether gradients burst."""
    steps, norms = evidence.series("grad_norm")
    if len(norms) < 3:
        return None
    if broken := _broken(evidence, "grad_norm", "gradient_broken"):
        return broken
    middle, peak = float(np.median(norms)), float(norms.max())
    numbers = {"middle": middle, "peak": peak, "step": int(steps[norms.argmax()]), "rate": evidence.rate / 3}
    return (WATCH, "gradient_bursts", numbers) if peak > 20 * middle else (GOOD, "gradient_even", numbers)


def held_out(evidence: Evidence) -> Said | None:
    """Tell whether pairs that are not trained on are told apart as well as those that are."""
    _, outside = evidence.series("eval_rewards/accuracies")
    if not len(outside) or len(evidence.windows) < 3:
        return None
    numbers = {"outside": float(outside[-1]), "inside": _late(evidence.accuracies)}
    apart = numbers["inside"] - numbers["outside"] > 0.15
    return (WATCH, "held_out_worse", numbers) if apart else (GOOD, "held_out_alike", numbers)


RULES: Mapping[str, Callable[[Evidence], Said | None]] = {
    "chosen": chosen_answers,
    "loss": loss,
    "accuracy": accuracy,
    "w_qual": quality,
    "w_perf": performance,
    "nll": nll,
    "learning_rate": movement,
    "grad_norm": gradient,
    "labels": labels,
    "length": length,
    "held_out": held_out,
}
"""Metric → its rule."""


def _late(values: np.ndarray) -> float:
    """The mean of the last sixth of a series, of at least one value."""
    return float(values[-max(1, len(values) // 6) :].mean())
