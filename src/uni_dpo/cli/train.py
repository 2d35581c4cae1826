"""`uni-dpo train`, `trl-dpo`, `ppo`, `grpo`: every way to train."""

from pathlib import Path
from typing import Annotated

import typer

from uni_dpo.cli.configured import Overrides

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; see docs/ppo.md.", show_default=False)]
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def train(context: typer.Context) -> None:
    """Train with LlamaFactory: CONFIG.yaml [key=value …], or its --flags. Knows pref_loss: uni_dpo."""
    from uni_dpo.llamafactory.launch import train as launch

    launch(context.args)


def trl_dpo(context: typer.Context) -> None:
    """Train with TRL: CONFIG.yaml [key=value …], or the flags of `trl dpo`. The loss is uni_dpo unless set."""
    from uni_dpo.settings.training import check_trl

    check_trl(context.args)
    from uni_dpo.trl.launch import train

    train(context.args)


def ppo(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train a vision-language model with PPO. A stopped run resumes from its last saved state."""
    from uni_dpo.ppo.config import PPOConfig

    settings = PPOConfig.load(config, overrides or ())
    from accelerate import PartialState

    from uni_dpo.ppo import train_ppo

    log = train_ppo(settings)
    say = PartialState().on_main_process(print)
    say(f"reward: {log[0]['reward']:.3f} in the first step, {log[-1]['reward']:.3f} in the last")
    say(settings.output_dir)


def grpo(config: ConfigFile, overrides: Overrides = None) -> None:
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
