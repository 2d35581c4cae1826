"""`uni-dpo demo`: the embedded model and its task as files, for `uni-dpo align`."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class TaskName(StrEnum):
    """An embedded task."""

    DIGITS = "digits"
    SCENES = "scenes"


def demo(
    folder: Annotated[Path, typer.Argument(help="A folder.")] = Path("outputs/demo"),
    task: Annotated[TaskName, typer.Option(help="What it will learn.")] = TaskName.DIGITS,
    seed: Annotated[int, typer.Option(help="Of splits and weights.")] = 0,
) -> None:
    """Write a tiny Qwen2-VL and questions about images; `uni-dpo align` goes on from there."""
    from uni_dpo.demo.task import write_task

    print(write_task(task.value, folder, seed=seed))
