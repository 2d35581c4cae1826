"""Prompts: text files with named gaps, ours under `prompts/` or the user's own."""

import re
from dataclasses import dataclass
from pathlib import Path

from uni_dpo.errors import UniDPOError

PROMPTS = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Template:
    """A prompt with gaps such as `{question}`; other braces are plain text."""

    text: str

    def render(self, **values: str) -> str:
        """Fill every gap in one pass, so that braces inside a value stay as they are."""
        pattern = "|".join(re.escape(f"{{{name}}}") for name in values)
        return re.sub(pattern, lambda gap: values[gap.group()[1:-1]], self.text).strip()


def load_template(name_or_path: str, *, gaps: tuple[str, ...]) -> Template:
    """The prompt of that name, or the text of the user's file.

    Args:
        name_or_path: a built-in name without suffix, or the path of a text file.
        gaps: names that the text must hold in braces.

    Raises:
        UniDPOError: no such prompt, or a gap is missing from it.
    """
    built_in = PROMPTS / f"{name_or_path}.txt"
    path = built_in if built_in.is_file() else Path(name_or_path)
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in PROMPTS.glob("*.txt")))
        raise UniDPOError(f"prompt {name_or_path!r}: no such file; built-in prompts: {known}")
    text = path.read_text(encoding="utf-8").strip()
    missing = [gap for gap in gaps if f"{{{gap}}}" not in text]
    if missing:
        raise UniDPOError(f"prompt {path}: {{{missing[0]}}} has to stand somewhere in it")
    return Template(text)
