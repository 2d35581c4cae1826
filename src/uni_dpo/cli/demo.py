"""`uni-dpo demo`: the whole chain on the embedded tiny model and real images."""

from pathlib import Path
from typing import Annotated

import typer


def demo(
    output: Annotated[Path, typer.Option(help="Everything is left here; a stopped demo goes on here.")] = Path(
        "outputs/demo"
    ),
    seed: Annotated[int, typer.Option(help="Of splits, weights, training and sampled answers.")] = 0,
) -> None:
    """Teach a tiny Qwen2-VL handwritten digits: SFT, its own scored pairs, Uni-DPO against DPO, evaluation."""
    from rich.console import Console

    from uni_dpo.demo.run import run_demo
    from uni_dpo.demo.settings import DemoSettings

    run_demo(output, DemoSettings(seed=seed), Console())
