"""`uni-dpo schema COMMAND`: the JSON schema of a command's configuration."""

import importlib
import json
from typing import Annotated, Any

import typer

from uni_dpo.errors import UniDPOError, did_you_mean

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
