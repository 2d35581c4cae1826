"""Schemas complete what the reader reads: every configuration of the repository is valid by its command's schema."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from uni_dpo.cli.configured import SCHEMAS, schema_for
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.reading import read_mapping

ROOT = Path(__file__).parents[2]
NO_CONFIG = {"dataset_info.json", "ds_z2.json", "ds_z3.json", "stances.json", "test_prompts.json"}
"""Files that no command reads as its configuration."""


def command_of(path: Path) -> str:
    """The command that a configuration is for."""
    if path.name == "config.json":
        return "eval"
    if path.parent.name in ("engine", "align") and "stage" not in read_mapping(path):
        return path.parent.name
    online = re.match(r"ppo|grpo", path.name)
    return online.group() if online else "train"


CONFIGS = sorted(
    path
    for pattern in ("examples/**/*.yaml", "examples/*/*.json", "VLMEvalKit/*.json")
    for path in ROOT.glob(pattern)
    if path.name not in NO_CONFIG
)


def errors(command: str, given: Any) -> list[str]:
    """What a schema says of a configuration."""
    return [error.message for error in jsonschema.Draft202012Validator(schema_for(command)).iter_errors(given)]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_is_valid(path: Path) -> None:
    assert errors(command_of(path), dict(read_mapping(path))) == []


def test_all_kinds_of_configurations_are_among_the_examples() -> None:
    assert len(CONFIGS) > 25
    assert {command_of(path) for path in CONFIGS} == {"train", "engine", "eval", "ppo", "grpo", "align"}


GOOD: dict[str, dict[str, Any]] = {
    "align": {"model": "m", "work_dir": "w", "questions": "q", "engine": {}, "train": {}},
    "train": {"pref_loss": "uni_dpo", "learning_rate": 1e-6},
    "trl-dpo": {"loss_type": ["uni_dpo"], "env": {"A": "b"}},
    "ppo": {"model": "m", "output_dir": "o", "reward": {"function": "exact"}},
    "grpo": {"model": "m", "output_dir": "o", "reward": {"function": "exact"}, "num_generations": 4},
    "engine": {"pipeline": "verifiable", "models": {"sampler": {"backend": "openai", "model": "m"}}},
    "eval": {"model": {"m": {"model_path": "m"}}, "data": {"POPE": {}}},
    "predict": {"source": "a", "output": "b", "model": "m"},
    "score": {"source": "a", "output": "b", "model": "m"},
    "compare": {"prompts": "a", "output": "b", "trained": "m"},
}


@pytest.mark.parametrize(
    ("command", "change"),
    [
        ("align", {"rounds": 0}),
        ("train", {"lerning_rate": 1}),
        ("train", {"uni_dpo_qual_eta": -1}),
        ("train", {"pref_loss": "uni_dop"}),
        ("train", {"lora_dropout": 2}),
        ("trl-dpo", {"score_chosen_colum": "a"}),
        ("ppo", {"lam": 2}),
        ("ppo", {"reward": {"modle": "m"}}),
        ("grpo", {"num_generations": 1}),
        ("grpo", {"finetuning": "qlora"}),
        ("engine", {"reward": {"gradr": "exact"}}),
        ("engine", {"models": {"sampler": {"backend": "openai", "model": "m", "timeot": 1}}}),
        ("engine", {"sample": {"temprature": 1}}),
        ("eval", {"model": {"m": {"model_path": "m", "top_p": 2}}}),
        ("eval", {"data": {"mine": {"pth": "a.tsv"}}}),
        ("predict", {"max_tokens": 0}),
        ("score", {"dtype": "float8"}),
        ("compare", {"trained": 3}),
    ],
)
def test_a_schema_refuses_what_the_reader_refuses(command: str, change: dict[str, Any]) -> None:
    assert errors(command, GOOD[command]) == []
    assert errors(command, GOOD[command] | change) != []


def test_every_command_has_a_good_configuration_here() -> None:
    assert GOOD.keys() == SCHEMAS.keys()


def test_descriptions_and_defaults_reach_the_editor() -> None:
    train = schema_for("train")["properties"]["uni_dpo_tau_good"]
    assert "good enough" in train["description"]
    ppo = schema_for("ppo")["properties"]
    assert ppo["clip"] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "description": "ε of the policy's ratio.",
        "default": 0.2,
    }


def test_an_unknown_command_is_named() -> None:
    with pytest.raises(UniDPOError, match="'evl' is no command with a configuration; did you mean 'eval'"):
        schema_for("evl")


def test_schemas_are_printed_without_anything_heavy() -> None:
    code = (
        "import sys; from uni_dpo.cli.app import app; from uni_dpo.cli.configured import SCHEMAS\n"
        "for command in SCHEMAS:\n"
        "    app(['schema', command], standalone_mode=False)\n"
        "    heavy = {'torch', 'transformers', 'llamafactory', 'trl'} & set(sys.modules)\n"
        "    assert not heavy, f'{command} imports {heavy}'"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    printed = [json.loads(text + "}") for text in done.stdout.split("\n}\n")[:-1]]
    assert [schema["title"] for schema in printed] == [f"uni-dpo {command}" for command in SCHEMAS]
