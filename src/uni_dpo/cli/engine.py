"""`uni-dpo engine …`: make scored preference pairs from questions and images."""

from pathlib import Path
from typing import Annotated

import typer

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
    from uni_dpo.engine.report import print_result

    result = run_engine(config, work_dir, run_stage=run_stage, continue_from_stage=continue_from_stage, debug=debug)
    print_result(result)
