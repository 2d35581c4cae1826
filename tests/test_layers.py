"""The modules depend in one direction only, without a circle, and importing the package is light."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import uni_dpo

PACKAGE = Path(uni_dpo.__file__).parent
LAYERS = (
    {"errors"},
    {"storage"},
    {"settings", "matmul"},
    {"objective", "logprobs", "shared_prefix", "ledger"},
    {"data"},
    {"report"},
    {"models", "preferences"},
    {"graders", "trainer_mixins", "weighted_losses", "monitor"},
    {"engine", "llamafactory", "trl", "vlmeval"},
    {"inference", "plan"},
    {"online"},
    {"ppo", "grpo"},
    {"overlay", "demo", "align"},
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


def files_imported(file: Path) -> set[Path]:
    """The files of this package that a file imports by name, at its top or inside a function."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            # `from package import module` names the module; `from module import thing` names what holds the thing.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if source_of(name) else node.module for name in names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {source for name in names if (source := source_of(name))}
    return found - {file}


def source_of(module: str) -> Path | None:
    base = PACKAGE.parent.joinpath(*module.split("."))
    return next((path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None)


def test_no_files_import_one_another_in_a_circle() -> None:
    graph = {file: files_imported(file) for file in PACKAGE.rglob("*.py")}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        circle = " → ".join(str(file.relative_to(PACKAGE)) for file in error.args[1])
        pytest.fail(f"a circle of imports: {circle}")


def test_no_class_name_stands_twice() -> None:
    places: dict[str, list[str]] = {}
    for file in PACKAGE.rglob("*.py"):
        for node in ast.parse(file.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(file.relative_to(PACKAGE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_public_docstrings_begin_with_a_verb() -> None:
    """No noun phrase, as `The …` or `Whether …`: say what the function does."""
    nouns = {"The", "A", "An", "What", "Whether", "Every", "All", "One", "How", "Where", "Why", "Which", "Who"}
    found = []
    for file in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or node.name.startswith("_"):
                continue
            noun = any(ast.unparse(mark).endswith(("property", ".setter")) for mark in node.decorator_list)
            first = (ast.get_docstring(node) or "").partition(" ")[0]
            if first in nouns and not noun:
                found.append(f"{file.relative_to(PACKAGE)}: {node.name}")
    assert found == []


def test_messages_and_pages_use_plain_words() -> None:
    root = PACKAGE.parents[1]
    phrases = ("sign of life", "looks before it leaps", "goes on at the row", "that of row 3 too", " mended", " mends ")
    pages = [*root.glob("*.md"), *root.glob("docs/**/*.md"), *PACKAGE.rglob("*.py")]
    said = [(page.name, phrase) for page in pages for phrase in phrases if phrase in page.read_text(encoding="utf-8")]
    assert said == []
    chinese = (root / "README_zh.md").read_text(encoding="utf-8")
    tripped = ("托住", "学认", "视觉塔", "检出", "自助法区间", "已发表的配方", "关卡", "留出图像")
    assert [word for word in tripped if word in chinese] == []
