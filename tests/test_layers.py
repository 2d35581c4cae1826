"""The modules depend in one direction only, and importing the package is light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import uni_dpo

PACKAGE = Path(uni_dpo.__file__).parent
LAYERS = (
    {"errors"},
    {"storage"},
    {"settings"},
    {"objective", "logprobs", "shared_prefix", "trainer_mixins"},
    {"data"},
    {"models"},
    {"graders"},
    {"engine", "llamafactory", "trl", "vlmeval"},
    {"inference"},
    {"online"},
    {"ppo", "grpo"},
    {"report"},
    {"overlay", "demo"},
    {"cli"},
)
"""From left to right; a part may import parts of layers further left, and itself."""

HEAVY = {"torch", "transformers", "datasets", "llamafactory", "vlmeval", "trl", "ray", "matplotlib", "sklearn"}


def part(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def imports(file: Path) -> set[str]:
    """The parts of this package that a file imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        found |= {part(module) for module in modules if module.startswith("uni_dpo.")}
    return {name for name in found if name and not name.startswith("__")}


@pytest.mark.parametrize("file", sorted(PACKAGE.rglob("*.py")), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_point_left(file: Path) -> None:
    own = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if own == "__init__":
        return
    level = next(number for number, layer in enumerate(LAYERS) if own in layer)
    allowed = set().union(*LAYERS[:level]) | {own}
    # Within the second layer the shared-prefix step is built on the log-probabilities.
    allowed |= {"logprobs"} if own == "shared_prefix" else set()
    # The command line says which demo it runs; within the last layer but one nothing imports anything else.
    assert imports(file) <= allowed


def test_importing_the_package_and_its_command_line_is_light() -> None:
    code = "import sys, uni_dpo, uni_dpo.cli.app; print(*(name for name in sys.modules if '.' not in name))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not HEAVY & set(loaded)
