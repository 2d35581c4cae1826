"""`uni-dpo align`, `init`, `doctor`: from images and questions to a better model."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from uni_dpo.cli.terminal import print_tables

Given = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings instead of the file's.", show_default=False),
]


def align(
    config: Annotated[Path, typer.Argument(help="YAML file; see docs/align.md.", show_default=False)],
    given: Given = None,
    plan: Annotated[bool, typer.Option("--plan", help="Show the stages, what is done and what is to come.")] = False,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="End with this stage, such as 1/train.")] = None,
    restart: Annotated[
        str | None, typer.Option("--from", metavar="STAGE", help="Do this stage and those after it again.")
    ] = None,
) -> None:
    """Sample, score, pair, train, choose, evaluate: round by round. A stopped run goes on where it was."""
    from rich.console import Console

    from uni_dpo.align.config import AlignConfig
    from uni_dpo.align.plan import plan_lines
    from uni_dpo.align.run import run_align
    from uni_dpo.cli.terminal import live_line

    settings = AlignConfig.load(config, given or ())
    if plan:
        from rich.table import Table

        table = Table("stage", "", "what", title=str(settings.work))
        for line in plan_lines(settings):
            table.add_row(line.stage, line.standing, line.what)
        print_tables([table])
        return
    with live_line(Console(stderr=True)) as show:
        run_align(settings, until=until, restart=restart, say=partial(print, flush=True), show=show)
    page = settings.work / "summary.md"
    if until is None and page.is_file():
        print(page.read_text(encoding="utf-8"))
        print(page)
