"""`uni-dpo plan`, `train`, `webui`, `trl-dpo`, `ppo`, `grpo`, `report`: before, in and after a training."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from uni_dpo.cli.configured import Overrides
from uni_dpo.errors import UniDPOError

ConfigFile = Annotated[Path, typer.Argument(help="YAML file; see docs/ppo.md.", show_default=False)]
SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def plan(
    config: Annotated[Path, typer.Argument(help="A configuration of uni-dpo train.", show_default=False)],
    overrides: Overrides = None,
    gpu: Annotated[str, typer.Option(help="h100, a100-40, a100-80, 4090 …; a wrong name lists all.")] = "h100",
    gpus: Annotated[int, typer.Option(min=1, help="How many of them.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate memory, time and disk of a training from its CONFIG.yaml, its data and the model's config.json."""
    from uni_dpo.llamafactory.launch import read_arguments
    from uni_dpo.plan.estimate import estimate, lines
    from uni_dpo.plan.gpus import gpu_named

    settings = read_arguments([str(config), *(overrides or ())])
    if not isinstance(settings, dict):
        raise UniDPOError(f"{config}: a plan reads a .yaml or .json configuration")
    found = estimate(settings, gpu_named(gpu), gpus)
    if as_json:
        print(json.dumps(asdict(found) | {"fits": found.fits}, ensure_ascii=False, indent=2))
    else:
        print("\n".join(lines(found, gpu, gpus)))
    raise typer.Exit(0 if found.fits else 1)


def train(context: typer.Context) -> None:
    """Train with LlamaFactory: CONFIG.yaml [key=value …], or its --flags. Knows pref_loss: uni_dpo."""
    from uni_dpo.llamafactory.launch import train as launch

    launch(context.args)


def webui() -> None:
    """Serve LlamaBoard, LlamaFactory's page, which knows pref_loss: uni_dpo here and trains by this program."""
    from uni_dpo.llamafactory.launch import web_ui

    web_ui()


def trl_dpo(context: typer.Context) -> None:
    """Train with TRL: CONFIG.yaml [key=value …], or the flags of `trl dpo`. The loss is uni_dpo unless set."""
    from uni_dpo.settings.training import check_trl

    check_trl([argument for argument in context.args if argument != "--verbose"])
    from uni_dpo.trl.launch import train

    train(context.args)


def ppo(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train a vision-language model with PPO. A stopped run resumes from its last saved state."""
    from uni_dpo.ppo.config import PPOConfig

    settings = PPOConfig.load(config, overrides or ())
    from accelerate import PartialState

    from uni_dpo.ppo.trainer import train_ppo

    log = train_ppo(settings)
    say = PartialState().on_main_process(print)
    say(f"reward: {log[0]['reward']:.3f} in the first step, {log[-1]['reward']:.3f} in the last")
    say(settings.output_dir)


def grpo(config: ConfigFile, overrides: Overrides = None) -> None:
    """Train a vision-language model with TRL's GRPO. A stopped run resumes from its last checkpoint."""
    from uni_dpo.grpo.config import GRPOSettings

    settings = GRPOSettings.load(config, overrides or ())
    from accelerate import PartialState

    from uni_dpo.grpo.trainer import reward_line, train_grpo

    log = train_grpo(settings)
    say = PartialState().on_main_process(print)
    say(reward_line(log))
    say(settings.output_dir)


def report(
    sources: Annotated[
        list[Path],
        typer.Argument(
            help="Output folders of trainings, an engine's work dir, or a file of pairs.", show_default=False
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="The page; by default report.html in the first folder.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="Write the model card of the training again, with this evaluation's table.")
    ] = None,
    images: Annotated[int, typer.Option(min=0, help="How many different images the page holds at most.")] = 3_000,
) -> None:
    """Write one page: verdicts, curves, weights and pairs of a training, or of several side by side."""
    from uni_dpo.ledger.columns import record_file
    from uni_dpo.report.card import write_card
    from uni_dpo.report.data import write_data_page
    from uni_dpo.report.run import write_run_page
    from uni_dpo.storage.writing import check_writable

    if evaluation is not None:
        if len(sources) != 1:
            raise UniDPOError("--evaluation: name one training, whose model card is to hold the table")
        print(write_card(sources[0], evaluation))
        return
    if output is not None:
        check_writable(output)
    if len(sources) == 1 and not record_file(sources[0]).is_file():
        print(write_data_page(sources[0], output, images=images))
    else:
        print(write_run_page(sources, output, images=images))
