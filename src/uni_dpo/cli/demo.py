"""`uni-dpo demo`: the embedded model and its task as files, for `uni-dpo align`."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Argument(help="A folder.")] = Path("outputs/demo"),
    seed: Annotated[int, typer.Option(help="Of splits and weights.")] = 0,
) -> None:
    """Write a tiny Qwen2-VL and questions about handwritten digits; `uni-dpo align` goes on from there."""
    from uni_dpo.demo.task import write_digits_task

    print(write_digits_task(output, seed=seed))
