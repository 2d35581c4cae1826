"""The end of a run in words and numbers: before and after with intervals, what was made, what it cost."""

import json
from pathlib import Path
from typing import Any

from uni_dpo.align.layout import Arm, WorkLayout
from uni_dpo.align.outcomes import gain, mean, read_grades
from uni_dpo.models.checkpoint import read_json
from uni_dpo.storage.writing import write_text


def write_summary(layout: WorkLayout) -> None:
    """Write `summary.json` and `summary.md` into the work dir."""
    found = summarize(layout)
    write_text(layout.work / "summary.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_text(layout.work / "summary.md", _page(found))


def summarize(layout: WorkLayout) -> dict[str, Any]:
    """What came of a run, as JSON values; means and gains in per cent, or on the scores' own scale."""
    by, unit, seed = layout.settings.evaluate.by, layout.unit, layout.settings.seed
    base = read_grades(layout.work / "base" / "test" / "model", by)
    tests: list[dict[str, Any]] = [{"model": "before", "mean": mean(base, unit)}]
    rounds = []
    for number in range(1, layout.settings.rounds + 1):
        arms = layout.arms(number)
        if arms[0].choice() is None:
            break
        rounds.append(_round(layout, number, arms[0]))
        for arm in arms:
            choice = arm.choice()
            if choice is None or not choice.kept:
                continue
            grades = read_grades(arm.folder / "test" / "model", by)
            difference, (low, high), count = gain(base, grades, unit=unit, seed=seed)
            name = f"round {number}" + (f", {arm.name.partition('/')[2]}" if arm.baseline else "")
            tests.append(
                {
                    "model": name, "mean": mean(grades, unit), "gain": difference, "low": low, "high": high,
                    "questions": count, "folder": choice.model, "baseline": arm.baseline,
                }
            )  # fmt: skip
    return {
        "unit": "per cent" if by == "answers" else "score",
        "model": layout.final(),
        "test": tests,
        "rounds": rounds,
        "benchmarks": read_json(layout.work / "benchmarks" / "work" / "results.json"),
    }


def _round(layout: WorkLayout, number: int, arm: Arm) -> dict[str, Any]:
    folder = arm.folder / "engine"
    counts = {
        name: entry.get("counts", {}) for name, entry in read_json(folder / "manifest.json").get("stages", {}).items()
    }
    choice = arm.choice()
    assert choice is not None
    usage = [entry.get("usage", {}) for entry in counts.values()]
    return {
        "round": number,
        "questions": counts.get("sample", {}).get("questions"),
        "answers": counts.get("sample", {}).get("answers"),
        "pairs": counts.get("pair", {}).get("pairs"),
        "requests": sum(entry.get("requests", 0) for entry in usage),
        "cost": sum(entry.get("cost", 0.0) for entry in usage),
        "validation": choice.means,
        "validation_before": choice.before,
        "chosen": choice.candidate,
        "kept": choice.kept,
        "reason": choice.reason,
        **_pairs_learnt(arm.model),
    }


def _pairs_learnt(model: Path) -> dict[str, float]:
    """The first and the last share of pairs that the training ranked better than its reference."""
    log = read_json(model / "trainer_state.json").get("log_history", [])
    shares = [line["rewards/accuracies"] for line in log if "rewards/accuracies" in line]
    return {"ranked_right_first": shares[0], "ranked_right_last": shares[-1]} if shares else {}


def _page(found: dict[str, Any]) -> str:
    per_cent = found["unit"] == "per cent"
    lines = [
        "# Before and after",
        "",
        f"On the test questions, {'right in per cent' if per_cent else 'mean score'}; gains over the model before the "
        "first round with 95 % intervals (paired bootstrap). Nothing was chosen on these questions.",
        "",
        "| model | test | gain | interval | questions |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    for row in found["test"]:
        if "gain" in row:
            interval = f"{row['low']:+.1f} … {row['high']:+.1f}"
            lines.append(
                f"| {row['model']} | {row['mean']:.1f} | {row['gain']:+.1f} | {interval} | {row['questions']} |"
            )
        else:
            lines.append(f"| {row['model']} | {row['mean']:.1f} | | | |")
    lines += ["", f"The best model: `{found['model']}`", ""]
    for row in found["rounds"]:
        lines += [
            f"## Round {row['round']}",
            "",
            f"- {row['questions']} questions, {row['answers']} answers, {row['pairs']} pairs",
            f"- {row['requests']:,} requests to models, cost {row['cost']:.4f}",
            f"- validation: {row['validation_before']:.1f} before; "
            + ", ".join(f"{name} {value:.1f}" for name, value in row["validation"].items()),
            f"- {row['reason']}",
        ]
        if "ranked_right_last" in row:
            first, last = row["ranked_right_first"], row["ranked_right_last"]
            lines.append(f"- pairs ranked better than by the reference: {first:.0%} at first, {last:.0%} at the end")
        lines.append("")
    return "\n".join(lines)
