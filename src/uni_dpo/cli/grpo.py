"""`uni-dpo grpo CONFIG.yaml`."""

from pathlib import Path
from typing import Annotated

import typer


def grpo(
    config: Annotated[Path, typer.Argument(help="YAML file; see docs/ppo.md.", show_default=False)],
) -> None:
    """Train a vision-language model with TRL's GRPO. A run that was stopped goes on from its last checkpoint."""
    from uni_dpo.grpo.config import GRPOSettings

    settings = GRPOSettings.load(config)
    from accelerate import PartialState

    from uni_dpo.grpo import train_grpo

    rewards = [line["reward"] for line in train_grpo(settings) if "reward" in line]
    say = PartialState().on_main_process(print)
    if rewards:
        say(f"reward: {rewards[0]:.3f} in the first line of the log, {rewards[-1]:.3f} in the last")
    say(settings.output_dir)
