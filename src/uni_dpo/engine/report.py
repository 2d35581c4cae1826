"""What a run says at its end."""

from typing import Any

from uni_dpo.engine.runner import EngineResult


def print_result(result: EngineResult) -> None:
    """Print the counts of every stage, the warnings, and last the path of the pairs."""
    for stage, counts in result.report.items():
        print(f"{stage:>7}: {_counts(counts)}")
        for name, value in counts.get("summary", {}).items():
            print(f"{'':>9}{name}: {value:.3g}")
    for warning in result.warnings:
        print(f"warning: {warning}")
    if result.pairs is not None:
        print(result.pairs)


def _counts(counts: dict[str, Any]) -> str:
    parts = [f"{counts[name]} {name}" for name in ("questions", "answers", "pairs") if name in counts]
    parts += [f"{counts[name]} {name}" for name in ("failed", "dropped") if counts.get(name)]
    parts += [f"{count} put aside ({reason})" for reason, count in sorted(counts.get("aside", {}).items())]
    usage = counts.get("usage", {})
    parts += [f"{usage[name]} {name}" for name in ("requests", "retries") if usage.get(name)]
    parts += [f"{count} × {kind}" for kind, count in sorted(usage.get("faults", {}).items())]
    if usage.get("cost"):
        parts.append(f"cost {usage['cost']:.4f}")
    return ", ".join(parts)
