"""The package as users meet it: light to import, typed, one version, and whole as a wheel."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import uni_dpo

ROOT = Path(__file__).parents[1]


def test_the_objective_is_a_public_name_that_loads_torch_only_when_used() -> None:
    code = (
        "import sys, uni_dpo\nassert 'torch' not in sys.modules\n"
        "from uni_dpo import PairLogps, UniDPOConfig, uni_dpo_loss\nassert 'torch' in sys.modules\n"
        "import uni_dpo.objective\nassert uni_dpo_loss is uni_dpo.objective.uni_dpo_loss"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(uni_dpo.__all__) <= set(dir(uni_dpo))
    with pytest.raises(AttributeError, match="no_such_name"):
        uni_dpo.no_such_name  # noqa: B018


def test_the_readme_shows_python_that_runs(capsys: pytest.CaptureFixture[str]) -> None:
    for page in ("README.md", "README_zh.md"):
        blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)
        assert len(blocks) == 1
        exec(compile(blocks[0], page, "exec"), {})
        printed = capsys.readouterr().out
        assert re.search(r"\d", printed)


def test_the_version_stands_once() -> None:
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", citation, re.MULTILINE).group(1) == uni_dpo.__version__  # type: ignore[union-attr]
    assert f"## {uni_dpo.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert 'dynamic = ["version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of an empty environment that holds the wheel and nothing of this tree."""
    wheels = sorted((ROOT / "dist").glob("uni_dpo-*.whl"))
    if not wheels:
        pytest.skip("no wheel in dist/: `make wheel` builds it")
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    python = folder / "bin/python"
    uv = Path(sys.executable).parent / "uv"
    install = [uv, "pip", "install", "--quiet", "--offline", "--no-deps", "--python", python, wheels[-1]]
    subprocess.run(install, check=True)
    # What the wheel needs is already on this machine: its dependencies are looked up beside this test's own.
    purelib = Path(typer.__file__).parents[1]
    (next((folder / "lib").glob("python*")) / "site-packages/dependencies.pth").write_text(f"{purelib}\n")
    return python


def test_the_wheel_holds_the_command_the_overlays_and_the_types(installed: Path, tmp_path: Path) -> None:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    script = "import uni_dpo, pathlib; print(pathlib.Path(uni_dpo.__file__).parent)"
    # -P: nothing of the current folder; the wheel's own folder stands before the dependencies'.
    found = subprocess.run([installed, "-P", "-c", script], capture_output=True, text=True, check=True, env=env)
    package = Path(found.stdout.strip())
    assert package.is_relative_to(installed.parents[1])
    assert (package / "py.typed").is_file()
    assert (package / "_overlay/LlamaFactory/src/llamafactory/train/dpo/__init__.py").is_file()
    assert (package / "engine/prompts").is_dir()
    command = [installed.parent / "uni-dpo", "--version"]
    version = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path, env=env)
    assert version.stdout.strip() == uni_dpo.__version__
