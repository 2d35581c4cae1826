"""A comparison for a terminal and for a browser."""

import base64
import html
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from uni_dpo.errors import plain
from uni_dpo.inference.compare import ORIGINAL, TRAINED

if TYPE_CHECKING:
    from rich.table import Table

Row = dict[str, Any]
HEADER = ("id", "prompt", "original model", "trained model")
THUMBNAIL = 240
"""Longest side of an image on the page, in pixels."""


def changed(rows: Sequence[Row]) -> int:
    """How many answers differ."""
    return sum(row[ORIGINAL] != row[TRAINED] for row in rows)


def table(rows: Sequence[Row]) -> "Table":
    """The answers side by side, for a terminal."""
    from rich.table import Table
    from rich.text import Text

    side_by_side = Table(*HEADER, show_lines=True)
    for row in rows:
        side_by_side.add_row(*(Text(plain(str(row[name]))) for name in ("id", "prompt", ORIGINAL, TRAINED)))
    return side_by_side


def page(rows: Sequence[Row], title: str, facts: Sequence[str] = ()) -> str:
    """The answers side by side, and how the model was trained, as one HTML page that needs nothing beside it."""
    head = "".join(f"<th>{name}</th>" for name in HEADER)
    body = "\n".join(map(_line, rows))
    told = f"Trained with {html.escape(', '.join(facts))}. " if facts else ""
    summary = f"{told}{changed(rows):,} of {len(rows):,} answers differ."
    return _PAGE.format(title=html.escape(title), summary=summary, head=head, body=body)


def _line(row: Row) -> str:
    prompt = "".join(map(_thumbnail, row.get("images", []))) + html.escape(row["prompt"])
    cells = (html.escape(str(row["id"])), prompt, html.escape(row[ORIGINAL]), html.escape(row[TRAINED]))
    kind = "" if row[ORIGINAL] != row[TRAINED] else ' class="same"'
    return f"<tr{kind}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"


def _thumbnail(path: str) -> str:
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    encoded = io.BytesIO()
    small.save(encoded, format="JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(encoded.getvalue()).decode()}"><br>'


_PAGE = """<!doctype html>
<html><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }}
table {{ border-collapse: collapse; table-layout: fixed; width: 100%; }}
td, th {{ border-bottom: 1px solid #ccc; overflow-wrap: anywhere; padding: .4rem .75rem; text-align: left;
  vertical-align: top; white-space: pre-wrap; }}
th:first-child {{ width: 4rem; }}
.same td {{ color: #888; }}
</style>
<body>
<h1>{title}</h1>
<p>{summary} Rows in grey are the same.</p>
<table><tr>{head}</tr>
{body}
</table>
</body></html>
"""
