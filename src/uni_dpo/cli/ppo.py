"""`uni-dpo ppo CONFIG.yaml [key=value …]`."""

from pathlib import Path
from typing import Annotated

import typer


def ppo(
    config: Annotated[Path, typer.Argument(help="YAML file; see docs/ppo.md.", show_default=False)],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Settings instead of the file's.", show_default=False),
    ] = None,
) -> None:
    """Train a vision-language model with PPO. A stopped run resumes from its last saved state."""
    from uni_dpo.ppo.config import PPOConfig

    settings = PPOConfig.load(config, overrides or ())
    from accelerate import PartialState

    from uni_dpo.ppo import train_ppo

    log = train_ppo(settings)
    say = PartialState().on_main_process(print)
    say(f"reward: {log[0]['reward']:.3f} in the first step, {log[-1]['reward']:.3f} in the last")
    say(settings.output_dir)
