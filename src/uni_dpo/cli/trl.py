"""`uni-dpo trl-dpo …`."""

import typer

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def trl_dpo(context: typer.Context) -> None:
    """Train with TRL: the flags of `trl dpo`, or --config FILE.yaml. The loss is uni_dpo unless set."""
    from uni_dpo.trl.launch import train

    train(context.args)
