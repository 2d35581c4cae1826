"""The page of sources: commands that the program takes, recipes and scripts that are there, tests that exist."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from uni_dpo.cli.app import app

ROOT = Path(__file__).parents[1]
ROWS = re.findall(r"^\| (.+?) \| `([^`]+)` \| `([^`]+)` \|$", (ROOT / "docs" / "sources.md").read_text(), re.MULTILINE)
OWN = ("train", "trl-dpo", "ppo", "grpo")
"""Commands that read their arguments themselves."""


def test_the_page_has_a_row_for_every_feature() -> None:
    lines = (ROOT / "docs" / "sources.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith(("| there", "| ---"))]
    assert len(rows) == len(ROWS) > 30


@pytest.mark.parametrize(("there", "command", "test"), ROWS, ids=[row[0] for row in ROWS])
def test_a_row_s_command_is_taken_and_its_test_is_there(there: str, command: str, test: str) -> None:
    assert (ROOT / test).is_file()
    program, *words = shlex.split(command)
    if program in ("bash", "python"):
        assert (ROOT / words[0]).is_file()
        return
    assert program == "uni-dpo"
    for word in words:
        assert not word.startswith(("examples/", "VLMEvalKit/")) or (ROOT / word).is_file(), word
    group = typer.main.get_command(app)
    context = group.make_context("uni-dpo", [], resilient_parsing=True)
    while hasattr(group, "commands"):
        name, group, words = group.resolve_command(context, words)
        context = type(context)(group, parent=context, info_name=name)
        if name in OWN:
            return
    group.parse_args(context, list(words))
