"""`uni-dpo plan`: what a training will take, before anything is rented."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from uni_dpo.cli.configured import Overrides


def plan(
    config: Annotated[Path, typer.Argument(help="A configuration of uni-dpo train.", show_default=False)],
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="h100, a100-40, a100-80, 4090 …; a wrong name lists all.")] = "h100",
    gpus: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate memory, time and disk of a training from its CONFIG.yaml, its data and the model's config.json."""
    from uni_dpo.errors import UniDPOError
    from uni_dpo.llamafactory.launch import read_arguments
    from uni_dpo.plan.estimate import estimate
    from uni_dpo.plan.gpus import gpu_named
    from uni_dpo.plan.page import lines

    settings = read_arguments([str(config), *(overrides or ())])
    if not isinstance(settings, dict):
        raise UniDPOError(f"{config}: a plan reads a .yaml or .json configuration")
    found = estimate(settings, gpu_named(gpu), gpus, Path())
    if as_json:
        print(json.dumps(asdict(found) | {"fits": found.fits}, ensure_ascii=False, indent=2))
    else:
        print("\n".join(lines(found, gpu, gpus)))
    raise typer.Exit(0 if found.fits else 1)
