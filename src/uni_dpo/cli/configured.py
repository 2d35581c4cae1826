"""Commands that take the fields of a dataclass or CONFIG.yaml key=value, and the schema of every configuration."""

import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field
from typing import Annotated, Any, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.settings.options import load, parse, parts_of, settable
from uni_dpo.settings.reading import override
from uni_dpo.settings.schema import described


def add(app: typer.Typer, name: str, settings: type, run: Callable[[Any], None]) -> None:
    """Add the command `name`, which makes an instance of the dataclass `settings` and calls `run` with it.

    The docstring is its help. A field of type `settings.options.Argument` comes without a `--name`.
    """

    def call(**values: Any) -> None:
        given = {key: value for key, value in values.items() if value is not None}
        mappings = {key: override({}, given[key]) for key in given if _is_mapping(hints[key])}
        run(parse(settings, given | mappings, ""))

    class Command(TyperCommand):
        def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
            if args and args[0].endswith((".yaml", ".yml")):
                ctx.obj, args = load(settings, args[0], args[1:]), []
                return args
            return super().parse_args(ctx, args)

        def invoke(self, ctx: Any) -> Any:
            return run(ctx.obj) if isinstance(ctx.obj, settings) else super().invoke(ctx)

    hints = get_type_hints(settings, include_extras=True)
    helps = described(settings)
    parameters = [_parameter(field, hints[field.name], helps.get(key, "")) for key, field in settable(settings).items()]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {}
    summary = str(settings.__doc__).splitlines()[0]
    call.__doc__ = f"{summary} Or: {name} CONFIG.yaml [KEY=VALUE]..."
    app.command(name, cls=Command)(call)


def _parameter(field: "Field[Any]", kind: Any, text: str) -> inspect.Parameter:
    text = text[:1].upper() + text[1:]
    default: Any = inspect.Parameter.empty if field.default is MISSING else field.default
    (kind, *others), bounds = parts_of(kind)
    spelling = next((bound for bound in bounds if isinstance(bound, str)), "")  # as `settings.options.Argument` has it
    shown: Any = kind | None if others else kind
    about: Any
    if _is_mapping(kind):
        default, shown, about = None, list[str] | None, typer.Option(help=text, metavar="<key=value>")
    elif spelling == "argument":
        about = typer.Argument(help=text)
    else:
        flag = (f"--{field.name.replace('_', '-')}",) if kind is bool else ()
        about = typer.Option(*(spelling.split() or flag), help=text)
    named = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(field.name, named, default=default, annotation=Annotated[shown, about])


def _is_mapping(kind: Any) -> bool:
    """Whether a field holds a mapping, which a command line gives as `--field key=value`, one at a time."""
    return any(get_origin(part) is Mapping for part in parts_of(kind)[0])


Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings instead of the file's.", show_default=False),
]
"""The words after a configuration file."""
SCHEMAS = {
    "align": "uni_dpo.align.config:AlignSettings",
    "train": "uni_dpo.settings.training:train_schema",
    "trl-dpo": "uni_dpo.settings.training:trl_dpo_schema",
    "ppo": "uni_dpo.ppo.config:PPOConfig",
    "grpo": "uni_dpo.grpo.config:schema",
    "engine": "uni_dpo.engine.config:schema",
    "eval": "uni_dpo.vlmeval.config:schema",
    "predict": "uni_dpo.inference.settings:PredictSettings",
    "score": "uni_dpo.inference.settings:ScoreSettings",
    "compare": "uni_dpo.inference.settings:CompareSettings",
}
"""Command → the function that makes its schema, or the dataclass that it reads."""


def schema_for(command: str) -> dict[str, Any]:
    """Make the schema of a command's configuration.

    Raises:
        UniDPOError: there is no such command, or it reads no configuration.
    """
    from uni_dpo.settings.schema import schema_of

    if command not in SCHEMAS:
        hint = did_you_mean(command, SCHEMAS) or f"; known: {', '.join(SCHEMAS)}"
        raise UniDPOError(f"{command!r} is no command with a configuration{hint}")
    module, _, name = SCHEMAS[command].partition(":")
    thing = getattr(importlib.import_module(module), name)
    made: dict[str, Any] = schema_of(thing) if isinstance(thing, type) else thing()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": f"uni-dpo {command}"} | made


def schema(command: Annotated[str, typer.Argument(help=f"One of {', '.join(SCHEMAS)}.")]) -> None:
    """Print the JSON schema by which an editor completes and checks a command's configuration."""
    print(json.dumps(schema_for(command), ensure_ascii=False, indent=2))
