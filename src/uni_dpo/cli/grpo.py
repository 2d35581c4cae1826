"""`uni-dpo grpo CONFIG.yaml [key=value …]`."""

from pathlib import Path
from typing import Annotated

import typer


def grpo(
    config: Annotated[Path, typer.Argument(help="YAML file; see docs/ppo.md.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings instead of the file's.", show_default=False),
    ] = None,
) -> None:
    """Train a vision-language model with TRL's GRPO. A run that was stopped goes on from its last checkpoint."""
    from uni_dpo.grpo.config import GRPOSettings

    settings = GRPOSettings.load(config, overrides or ())
    from accelerate import PartialState

    from uni_dpo.grpo import train_grpo
    from uni_dpo.grpo.run import reward_line

    log = train_grpo(settings)
    say = PartialState().on_main_process(print)
    say(reward_line(log))
    say(settings.output_dir)
