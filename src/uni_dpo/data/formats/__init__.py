"""The layouts that pair files come in, one module per family; `FORMATS` holds them by name."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path

from uni_dpo.data.checks.rows import IMAGE_TOKEN
from uni_dpo.data.columns import IMAGE_COLUMNS, first_filled
from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.formats import chatml, conversations, llamafactory, llava, ranked, rlaif_v, stance, trl
from uni_dpo.data.formats.base import Format
from uni_dpo.data.register import detect_entry
from uni_dpo.data.tables.reading import Row, numbered_rows
from uni_dpo.errors import UniDPOError

FORMATS: dict[str, Format] = {
    format.name: format
    for module in (llamafactory, trl, rlaif_v, ranked, llava, conversations, chatml, stance)
    for format in module.FORMATS
}


def format_named(name: str) -> Format:
    """Return the format that `--format` names, or raise a `UniDPOError` that names all."""
    if name not in FORMATS:
        raise UniDPOError(f"no format {name!r}; use one of {', '.join(FORMATS)}")
    return FORMATS[name]


def source_format(name: str, files: Sequence[Path], columns: Mapping[str, str]) -> Format:
    """Return the format that `--format` names; for `auto` the one that the first row's columns are of.

    Raises:
        UniDPOError: there is none, or `columns`, which map a format's, stand beside `auto`.
    """
    if name != "auto":
        return _as_called_in(files[0]) if name == "llamafactory" and not columns else format_named(name)
    if columns:
        raise UniDPOError("--map names the columns of a format; name it with --format, not auto")
    rows = (row for file in files for *_, row in numbered_rows(file) if isinstance(row, dict))
    row = next(rows, {})
    if found := _detected(row):
        return format_named(found)
    try:
        entry = detect_entry(files[0])
    except PreferenceDataError as error:
        advice = "; `uni-dpo data formats` shows what is read, --format names one, and --map its columns"
        raise PreferenceDataError(str(error).partition("; `uni-dpo data convert`")[0] + advice) from None
    return Format("llamafactory", "", read=llamafactory.reader(entry))


def _as_called_in(file: Path) -> Format:
    """LlamaFactory's pair record, whose scores, images and question may have the other names that the check knows."""
    known, pairs = format_named("llamafactory"), llamafactory.ALPACA
    try:
        found = detect_entry(file)
    except PreferenceDataError:  # what is wrong there is named row by row
        return known
    if found.formatting != "alpaca" or found.ranked:
        return known
    names = {role: name for role, name in asdict(found.columns).items() if name}
    return replace(known, read=llamafactory.reader(replace(pairs, columns=replace(pairs.columns, **names))))


def _detected(row: Row) -> str | None:
    """The format that a row's columns are of; None where LlamaFactory's layouts are looked for."""
    match row:
        case {"text": str(text)} if text.lstrip().startswith("{") and "chosen" not in row:
            return "rlaif-v-text"
        case {"conversations": [*_, {"value": [*_]}]}:
            return "llava"
        case {"prompt": str(prompt)} if prompt.startswith("<|im_start|>"):
            return "math"
        case {"question": str(text)} if IMAGE_TOKEN not in text and first_filled(row, IMAGE_COLUMNS) is not None:
            return "rlaif-v" if "chosen" in row else None
    if isinstance(row.get("chosen"), list) or _lacks_placeholders(row):
        return "trl"
    known = {
        "completions": "vlfeedback", "responses": "mm-rlhf", "rejected_response": "swift", "rejected_messages": "swift",
        "rejected_conversations": "povid", "output_2": "llava-rlhf",
    }  # fmt: skip
    return next((name for column, name in known.items() if column in row), None)


def _lacks_placeholders(row: Row) -> bool:
    """Whether a row of texts has images that nothing in it stands for: LlamaFactory's layouts would refuse it."""
    texts = [row.get(name) for name in ("prompt", "instruction", "chosen", "rejected")]
    asked = any(isinstance(text, str) for text in texts[:2]) and all(isinstance(text, str) for text in texts[2:])
    plain = not any(row.get(name) for name in ("history", "system", "input", "rejected_images"))
    return asked and plain and IMAGE_TOKEN not in str(texts) and first_filled(row, IMAGE_COLUMNS) is not None


def format_table() -> str:
    """Return the formats as a Markdown table: name, columns, and whether they are read and written."""
    lines = ["| format | read | written | columns |", "| --- | --- | --- | --- |"]
    for format in FORMATS.values():
        ways = format.remap or (format.read, format.write)
        marks = ["yes" if way else "–" for way in ways]
        lines.append(f"| `{format.name}` | {marks[0]} | {marks[1]} | {format.shape} |")
    return "\n".join(lines)
