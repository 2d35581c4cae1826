"""The layouts that pair files come in, one module per family; `FORMATS` holds them by name."""

from uni_dpo.data.formats import chatml, llamafactory, llava, ranked, rlaif_v, stance, trl
from uni_dpo.data.formats.base import Format
from uni_dpo.errors import UniDPOError

FORMATS: dict[str, Format] = {
    format.name: format
    for module in (llamafactory, trl, rlaif_v, ranked, llava, chatml, stance)
    for format in module.FORMATS
}


def format_named(name: str) -> Format:
    """Return the format that `--format` names.

    Raises:
        UniDPOError: there is none.
    """
    if name not in FORMATS:
        raise UniDPOError(f"no format {name!r}; use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def format_table() -> str:
    """Return the formats as a Markdown table: name, columns, and whether they are read and written."""
    lines = ["| format | read | written | columns |", "| --- | --- | --- | --- |"]
    for format in FORMATS.values():
        ways = format.remap or (format.read, format.write)
        marks = ["yes" if way else "–" for way in ways]
        lines.append(f"| `{format.name}` | {marks[0]} | {marks[1]} | {format.shape} |")
    return "\n".join(lines)
