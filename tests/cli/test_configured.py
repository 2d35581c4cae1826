"""Commands whose options are the fields of a dataclass take the same from a file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import typer
from typer.testing import CliRunner

from uni_dpo.cli import configured
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.options import Argument, Count, ImageRoot


@dataclass(frozen=True)
class Options:
    """Do something.

    Attributes:
        source: where from.
        batch_size: rows at once.
    """

    source: Argument
    model: str
    image_root: ImageRoot = None
    batch_size: Count = 8
    dtype: Literal["auto", "float32"] = "auto"
    quick: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)


def given(*words: str) -> Options:
    """What the command makes of the words of a command line."""
    app = typer.Typer()
    found: list[Options] = []
    configured.add(app, "do", Options, found.append)
    app.callback()(lambda: None)
    result = CliRunner().invoke(app, ["do", *words])
    if isinstance(result.exception, UniDPOError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return found[0]


def test_options_and_a_file_say_the_same(tmp_path: Path) -> None:
    config = tmp_path / "do.yaml"
    config.write_text("source: a.jsonl\nmodel: -m\nimage_root: pictures\ndtype: float32\nquick: true\n")
    by_options = given("a.jsonl", "--model=-m", "--media-dir", "pictures", "--dtype", "float32", "--quick")
    assert by_options == Options(Path("a.jsonl"), "-m", Path("pictures"), 8, "float32", True)
    assert given(str(config)) == by_options
    assert given(str(config), "batch_size=2", "quick=false") == Options(
        Path("a.jsonl"), "-m", Path("pictures"), 2, "float32"
    )


def test_a_mapping_is_given_an_item_at_a_time(tmp_path: Path) -> None:
    config = tmp_path / "do.yaml"
    config.write_text("source: a.jsonl\nmodel: m\nmore: {most: 5, name: '1e3', deep: {a: null}}\n")
    more = {"most": 5, "name": "1e3", "deep": {"a": None}}
    assert given(str(config)).more == more
    words = ("--more", "most=5", "--more", "name='1e3'", "--more", "deep={a: null}")
    assert given("a.jsonl", "--model=m", *words).more == more
    assert given(str(config), "more.most=6").more["most"] == 6
    with pytest.raises(UniDPOError, match="`key=value` is expected"):
        given("a.jsonl", "--model=m", "--more", "most")


def test_faults_are_named_by_line_or_option(tmp_path: Path) -> None:
    config = tmp_path / "do.yaml"
    config.write_text("source: a.jsonl\nmodle: m\n")
    with pytest.raises(UniDPOError) as refused:
        given(str(config), "batch_size=0")
    assert str(refused.value).splitlines() == [
        f"{config}:2: modle: unknown setting; did you mean 'model'?",
        "command line: batch_size: 0 is out of range; it can be 1 or more",
        f"{config}: model: this setting is required",
    ]
    with pytest.raises(UniDPOError, match=r"^batch_size: 0 is out of range"):
        given("a.jsonl", "--model", "m", "--batch-size", "0")
