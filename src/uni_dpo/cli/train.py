"""`uni-dpo train CONFIG.yaml [key=value …]`."""

import typer

SETTINGS = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}


def train(context: typer.Context) -> None:
    """Train with LlamaFactory: CONFIG.yaml [key=value …], or its --flags. Knows pref_loss: uni_dpo."""
    from uni_dpo.llamafactory.launch import train as launch

    launch(context.args)
