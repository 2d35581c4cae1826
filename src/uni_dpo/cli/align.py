"""`uni-dpo align`, `init`, `doctor`, `demo`: from images and questions to a better model."""

from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from uni_dpo.cli.configured import Overrides
from uni_dpo.cli.entry import print_tables


def align(
    config: Annotated[Path, typer.Argument(help="YAML file; see docs/align.md.", show_default=False)],
    given: Overrides = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the stages, what is done and what is to come.")] = False,
    gpu: Annotated[str | None, typer.Option(help="With --plan: what trainings will run on, as h100, a100-40.")] = None,
    gpus: Annotated[int, typer.Option(min=1, help="With --gpu: how many of them.")] = 1,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="End with this stage, such as 1/train.")] = None,
    restart: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and those after it again.")
    ] = None,
) -> None:
    """Sample, score, pair, train, choose, evaluate: round by round. A stopped run resumes."""
    from rich.console import Console

    from uni_dpo.align.config import AlignConfig
    from uni_dpo.align.plan import plan_lines
    from uni_dpo.align.run import run_align
    from uni_dpo.cli.entry import live_line

    settings = AlignConfig.load(config, given or ())
    if plan:
        from rich.table import Table

        table = Table("stage", "", "what", title=str(settings.work))
        for line in plan_lines(settings, gpu, gpus):
            table.add_row(line.stage, line.standing, line.what)
        print_tables([table])
        return
    with live_line(Console(stderr=True)) as show:
        run_align(settings, until=until, restart=restart, say=partial(print, flush=True), show=show)
    page = settings.work / "summary.md"
    if until is None and page.is_file():
        print(page.read_text(encoding="utf-8"))
        print(page)


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Questions with images, or pairs.")] = Path(),
    language: Annotated[Literal["en", "zh"], typer.Option(help="Of the comments.")] = "en",
    model: Annotated[str | None, typer.Option(help="Folder or hub name; else a checkpoint in DIR.")] = None,
    judge: Annotated[str | None, typer.Option(help="A server that scores answers; its address ends in /v1.")] = None,
    judge_model: Annotated[str, typer.Option(help="The judge's name on its server.")] = "judge",
) -> None:
    """Write a commented configuration for what is in DIR."""
    from uni_dpo.align.init import write_config

    path, follow = write_config(folder, language=language, model=model, judge=judge, judge_model=judge_model)
    print("\n".join([f"{path}; next:", *(f"  {line}" for line in follow)]))


def doctor(
    config: Annotated[Path | None, typer.Argument(help="A configuration of `uni-dpo align`.")] = None,
    given: Overrides = None,
) -> None:
    """Say what of this machine, a configuration and its data will not work. Exit status 1 if something will not."""
    from uni_dpo.align.doctor import examine

    marks = {"good": "good ", "mind": "mind ", "fault": "FAULT"}
    verdicts = set()
    for finding in examine(config, tuple(given or ())):
        print(f"{marks[finding.verdict]}  {finding.what}: {finding.found}", flush=True)
        verdicts.add(finding.verdict)
    raise typer.Exit(1 if "fault" in verdicts else 0)


def demo(
    folder: Annotated[Path, typer.Argument(help="A folder.")] = Path("outputs/demo"),
    task: Annotated[Literal["digits", "scenes"], typer.Option(help="What it will learn.")] = "digits",
    seed: Annotated[int, typer.Option(help="Of splits and weights.")] = 0,
) -> None:
    """Write a tiny Qwen2-VL and questions about images; `uni-dpo align` goes on from there."""
    from uni_dpo.demo.task import write_task

    print(write_task(task, folder, seed=seed))
