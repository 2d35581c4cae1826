"""`uni-dpo engine …`: make scored preference pairs from questions and images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from uni_dpo.engine import EngineResult

app = typer.Typer(name="engine", help="Make scored preference pairs from questions and images.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    pass


@app.command()
def run(
    config: Annotated[Path, typer.Argument(help="YAML file; see docs/engine.md.", show_default=False)],
    work_dir: Annotated[Path, typer.Option(help="Holds every stage's rows and, in the end, dataset/pairs.json.")],
    run_stage: Annotated[
        int | None, typer.Option(min=0, max=2, help="Only this stage: 0 sample, 1 reward, 2 pair.")
    ] = None,
    continue_from_stage: Annotated[
        int | None, typer.Option(min=0, max=2, help="Do this stage and those after it again if the config changed.")
    ] = None,
    debug: Annotated[bool, typer.Option("--debug", help="Keep every request and reply in WORK_DIR/debug.")] = False,
) -> None:
    """Run a config: sample answers, score them, pair them. A stopped run resumes."""
    from uni_dpo.engine import run_engine

    result = run_engine(config, work_dir, run_stage=run_stage, continue_from_stage=continue_from_stage, debug=debug)
    print_result(result)


def print_result(result: "EngineResult") -> None:
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
