"""The end of a run in words and numbers: before and after with intervals, what was made and learnt, what it cost."""

import json
from pathlib import Path
from typing import Any

import pyarrow.compute as pc

from uni_dpo.align.choice import gain, mean, read_grades
from uni_dpo.align.layout import Arm, WorkLayout
from uni_dpo.errors import plain
from uni_dpo.ledger.reading import read_ledger, read_texts
from uni_dpo.storage import read_json
from uni_dpo.storage.writing import write_text

_CHARACTERS = 80
_PAIRS_SHOWN = 3


def write_summary(layout: WorkLayout) -> None:
    """Write `summary.json` and `summary.md` into the work dir."""
    found = summarize(layout)
    write_text(layout.work / "summary.json", json.dumps(found, indent=1, ensure_ascii=False) + "\n")
    write_text(layout.work / "summary.md", _page(found))


def summarize(layout: WorkLayout) -> dict[str, Any]:
    """Return what came of a run, as JSON values; means and gains in per cent, or on the scores' own scale."""
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
        "spent": _spent(layout),
        "report": str(page) if (page := layout.work / "report.html").is_file() else None,
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
        **_summed(usage),
        "validation": choice.means,
        "validation_before": choice.before,
        "chosen": choice.candidate,
        "kept": choice.kept,
        "reason": choice.reason,
        "learnt": pairs_learnt(arm.model),
    }


def _spent(layout: WorkLayout) -> dict[str, Any]:
    """Requests to models and their cost, of all samples, scores and evaluations that the result rests on."""
    places = [layout.work / "base", *(layout.round(number) for number in range(1, layout.settings.rounds + 1))]
    usage = [
        entry.get("counts", {}).get("usage", {})
        for place in places
        for file in place.rglob("manifest.json")
        for entry in read_json(file).get("stages", {}).values()
    ]
    return _summed(usage)


def _summed(usage: list[dict[str, Any]]) -> dict[str, Any]:
    return {name: sum(entry.get(name, 0) for entry in usage) for name in ("requests", "cost")}


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
        gained = "| |"
        if "gain" in row:
            gained = f"{row['gain']:+.1f} | {row['low']:+.1f} … {row['high']:+.1f} | {row['questions']}"
        lines.append(f"| {row['model']} | {row['mean']:.1f} | {gained} |")
    lines += ["", f"The best model: `{found['model']}`", ""]
    if found["report"]:
        lines += [f"The trainings, their curves and every pair: `{found['report']}`", ""]
    if found["spent"]["requests"]:
        requests, cost = found["spent"]["requests"], found["spent"]["cost"]
        lines += [f"In all {requests:,} requests to models, those of the evaluations included; cost {cost:.4f}", ""]
    for row in found["rounds"]:
        lines += [
            f"## Round {row['round']}",
            "",
            f"- {row['questions']} questions, {row['answers']} answers, {row['pairs']} pairs",
            f"- for its pairs {row['requests']:,} requests to models, cost {row['cost']:.4f}",
            f"- validation: {row['validation_before']:.1f} before; "
            + ", ".join(f"{name} {value:.1f}" for name, value in row["validation"].items()),
            f"- {row['reason']}",
        ]
        lines += [*_learnt(row["learnt"]), ""]
    lines += _benchmarks(found["benchmarks"])
    return "\n".join(lines)


def _learnt(found: dict[str, Any]) -> list[str]:
    """The pairs that a training moved apart, and those that it did not."""
    if not found:
        return []
    lines = [f"- pairs whose answers moved apart the right way: {found['apart']:,} of {found['pairs']:,}"]
    for name, title in (("most", "moved apart most"), ("least", "moved apart least")):
        lines += ["", f"{title} (log-probability, nats):", ""]
        for row in found[name]:
            question, better, worse = (_quoted(row[key]) for key in ("question", "chosen", "rejected"))
            lines.append(f"- {row['change']:+.2f}: {question} {better}, not {worse}")
    return lines


def _benchmarks(found: dict[str, Any]) -> list[str]:
    rows = found.get("results", [])
    if not rows:
        return []
    lines = [
        "## Benchmarks",
        "",
        "| benchmark | model | score | gain | interval |",
        "| --- | --- | ---: | ---: | ---: |",
    ]
    for row in rows:
        gained = row.get("difference") is not None
        more = f"{row['difference']:+.1f} | {row['low']:+.1f} … {row['high']:+.1f}" if gained else " | "
        score = "failed" if row.get("score") is None else f"{row['score']:.1f}"
        lines.append(f"| {row['benchmark']} | {row['model']} | {score} | {more} |")
    return [*lines, ""]


def _quoted(text: object) -> str:
    """A text in one line of Markdown, cut where it is long."""
    one = " ".join(plain(str(text)).replace("<image>", "").replace("`", "'").split())
    return f"`{one[: _CHARACTERS - 1]}…`" if len(one) > _CHARACTERS else f"`{one}`"


def pairs_learnt(output: Path) -> dict[str, Any]:
    """Return counts, and the pairs whose margin log π(chosen) − log π(rejected) grew most and fell most.

    A pair's margin at its last visit is compared with the reference's, or where the loss has no reference with its own
    at the first visit.

    Returns:
        `pairs`, `apart` (how many margins grew), `most` and `least` (pair, change in nats, question, chosen, rejected);
        nothing where no ledger was kept.
    """
    rows = read_ledger(output)
    rows = rows.filter(pc.equal(pc.cast(rows["split"], "string"), "train"))
    changes: dict[str, tuple[float, float]] = {}
    columns = ("pair", "policy_margin", "reference_margin")
    for pair, policy, reference in zip(*(rows[name].to_pylist() for name in columns), strict=True):
        if policy is not None:
            base = changes[pair][0] if pair in changes else policy
            changes[pair] = (base if reference is None else reference, policy)
    if not changes:
        return {}
    grown = sorted(((after - before, pair) for pair, (before, after) in changes.items()), reverse=True)
    texts = {row["pair"]: row for row in read_texts(output).to_pylist()}
    return {
        "pairs": len(grown),
        "apart": sum(change > 0 for change, _ in grown),
        "most": [_shown(change, pair, texts) for change, pair in grown[:_PAIRS_SHOWN]],
        "least": [_shown(change, pair, texts) for change, pair in reversed(grown[-_PAIRS_SHOWN:])],
    }


def _shown(change: float, pair: str, texts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    row = texts.get(pair, {})
    return {"pair": pair, "change": change, **{name: row.get(name) for name in ("question", "chosen", "rejected")}}
