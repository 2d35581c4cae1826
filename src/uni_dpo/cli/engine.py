"""`uni-dpo engine …`: make scored preference pairs from questions and images."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uni_dpo.cli.configured import Overrides

if TYPE_CHECKING:
    from uni_dpo.engine import EngineResult

app = typer.Typer(name="engine", help="Make scored preference pairs from questions and images.", no_args_is_help=True)


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
    overrides: Overrides = None,
) -> None:
    """Run a config: sample answers, score them, pair them. A stopped run resumes."""
    from uni_dpo.engine import EngineConfig, run_engine

    settings = EngineConfig.load(config, overrides or ())
    result = run_engine(settings, work_dir, run_stage=run_stage, continue_from_stage=continue_from_stage, debug=debug)
    print_result(result)


@app.command("rlaif-v")
def rlaif_v(
    work_dir: Annotated[Path, typer.Option("--work_dir", "--work-dir", help="Holds rlaif_v.yaml and every stage.")],
    dataset_path: Annotated[str, typer.Option("--dataset_path", help="Questions with images: a file or a folder.")],
    pipeline_name: Annotated[str, typer.Option("--pipeline_name", help="divide_and_conquer or dpo_reward.")],
    instruct_model_path: Annotated[str, typer.Option("--instruct_model_path", help="The model that answers.")],
    reward_model_path: Annotated[
        str, typer.Option("--reward_model_path", help="splitter,asker,checker; for dpo_reward aligned,reference.")
    ],
    sample_k: Annotated[int, typer.Option("--sample_k", min=2, help="Answers per question.")] = 10,
    rank: Annotated[int, typer.Option("--rank", min=1, help="dpo_reward: the best and the worst N may pair.")] = 3,
    distance: Annotated[int, typer.Option("--distance", min=1, help="dpo_reward: pairs differ by fewer words.")] = 25,
    strict_follow_rank: Annotated[
        bool, typer.Option("--strict_follow_rank", help="dpo_reward: best with worst, second with second worst, only.")
    ] = False,
    run_stage: Annotated[int, typer.Option("--run_stage", min=-1, max=2, help="Only this stage; -1: all.")] = -1,
    continue_from_stage: Annotated[
        int, typer.Option("--continue_from_stage", min=0, max=2, help="This stage and those after it, anew if changed.")
    ] = 0,
    debug: Annotated[bool, typer.Option("--debug", help="Keep every request and reply in WORK_DIR/debug.")] = False,
    seed: Annotated[int, typer.Option(help="Of everything drawn.")] = 0,
    backend: Annotated[str, typer.Option(help="That runs the models: transformers or vllm.")] = "transformers",
    instruct_model_name: Annotated[str | None, typer.Option("--instruct_model_name", help="Not needed.")] = None,
    reward_model_name: Annotated[str | None, typer.Option("--reward_model_name", help="Not needed.")] = None,
    reward_model_python_path: Annotated[
        str | None, typer.Option("--reward_model_python_path", help="Of no effect; the run says what to use.")
    ] = None,
) -> None:
    """Take the arguments of RLAIF-V's data engine, show and keep them as a config of ours, and run it."""
    import yaml

    from uni_dpo.engine import run_engine
    from uni_dpo.engine.config import EngineConfig
    from uni_dpo.engine.rlaif_v import RlaifVArguments, configuration
    from uni_dpo.storage.writing import write_text

    given = RlaifVArguments(
        dataset_path,
        pipeline_name,
        instruct_model_path,
        reward_model_path,
        sample_k,
        rank,
        distance,
        strict_follow_rank,
        seed,
        backend,
        instruct_model_name,
        reward_model_name,
        reward_model_python_path,
    )
    config = configuration(given)
    EngineConfig(config)
    text = yaml.safe_dump(config, sort_keys=False, allow_unicode=True)
    path = work_dir / "rlaif_v.yaml"
    write_text(path, text)
    for line in given.without_effect():
        print(f"warning: {line}")
    print(f"{path}:\n{text}")
    only = None if run_stage < 0 else run_stage
    print_result(
        run_engine(config, work_dir, run_stage=only, continue_from_stage=continue_from_stage or None, debug=debug)
    )


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
    parts += [f"{counts[name]} {name}" for name in ("failed", "dropped", "cut answers") if counts.get(name)]
    parts += [f"{count} put aside ({reason})" for reason, count in sorted(counts.get("aside", {}).items())]
    usage = counts.get("usage", {})
    parts += [f"{usage[name]} {name}" for name in ("requests", "retries") if usage.get(name)]
    parts += [f"{count} × {kind}" for kind, count in sorted(usage.get("faults", {}).items())]
    if usage.get("cost"):
        parts.append(f"cost {usage['cost']:.4f}")
    return ", ".join(parts)
