"""Every page with commands is run by the nightly target, and its block is found."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location("first_commands", Path(__file__).with_name("first_commands.py"))
assert spec is not None
assert spec.loader is not None
first_commands = importlib.util.module_from_spec(spec)
spec.loader.exec_module(first_commands)


def test_no_page_is_left_out() -> None:
    pages = {"README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))}
    with_commands = {page for page in pages if first_commands.commands_of(page)}
    assert with_commands - {"docs/overlay.md", "docs/install.md"} == first_commands.PAGES.keys()
    for page in first_commands.PAGES:
        assert first_commands.commands_of(page), page


def test_commands_are_read_whole() -> None:
    assert first_commands.commands_of("docs/engine.md")[1] == first_commands.tiny("divide_and_conquer")
    (command, *_) = first_commands.commands_of("docs/trl.md")
    assert command.startswith("uni-dpo trl-dpo")
    assert command.endswith("Qwen2-0.5B-Uni-DPO")
