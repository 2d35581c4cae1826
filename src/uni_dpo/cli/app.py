"""The command tree. Modules named here import nothing heavy, so that `uni-dpo --help` is instant."""

from typing import Annotated

import typer

from uni_dpo import __version__
from uni_dpo.cli import align, configured, data, engine, models, overlay, train
from uni_dpo.inference.settings import CompareSettings, PredictSettings, ScoreSettings

app = typer.Typer(
    name="uni-dpo",
    help="Uni-DPO for vision-language models: prepare pairs, train, evaluate.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


app.command("init")(align.init)
app.command("doctor")(align.doctor)
app.command("align")(align.align)
app.command("demo")(align.demo)
app.command("plan")(train.plan)
app.command("train", context_settings=train.SETTINGS)(train.train)
app.command("webui")(train.webui)
app.command("trl-dpo", context_settings=train.SETTINGS)(train.trl_dpo)
app.add_typer(data.app, name="data")
app.add_typer(engine.app, name="engine")
app.command("eval")(models.evaluate)
app.command("chat")(models.chat)
configured.add(app, "compare", CompareSettings, models.compare)
app.command("compose")(models.compose)
configured.add(app, "predict", PredictSettings, models.predict)
configured.add(app, "score", ScoreSettings, models.score)
app.command("report")(train.report)
app.command("ppo")(train.ppo)
app.command("grpo")(train.grpo)
app.command("schema")(configured.schema)
app.add_typer(overlay.app, name="overlay")
