"""The cells of a tab-separated file, each the text it is, with what would shift them refused."""

import csv
import io
import re
import sys
from pathlib import Path

import pandas as pd

from uni_dpo.data.faults import shown
from uni_dpo.errors import UniDPOError

_DATA_URL = re.compile(r"data:image/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,", re.IGNORECASE)


def image_cell(cell: str) -> str:
    """Return an `image` cell with the base64 alone of every data URL in it."""
    return _DATA_URL.sub("", cell) if ":" in cell else cell


def read_frame(path: Path) -> pd.DataFrame:
    """Read a TSV with every cell as the text it is."""
    if not path.is_file():
        raise UniDPOError(f"no such file: {path}")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UniDPOError(f"{path} is not UTF-8 ({error}); save it as UTF-8") from error
    lines = [line.removesuffix("\r") for line in text.removesuffix("\n").split("\n")]
    cells = [line.split("\t") for line in lines]
    if len(cells[0]) == 1 and text:
        raise UniDPOError(f"{path}: its first line has no tab, which is what divides columns: {shown(lines[0])}")
    if twice := [name for name in cells[0] if cells[0].count(name) > 1]:
        raise UniDPOError(f"{path}: two columns are named {twice[0]!r}; rename one")
    if len({len(row) for row in cells}) == 1:  # every line is a row, whatever quotation marks say
        header, *rows = [[_unquoted(cell) for cell in row] for row in cells]
        frame = pd.DataFrame(rows, columns=header, dtype=str)
    else:
        _refuse_what_shifts_cells(path, text)
        try:
            frame = pd.read_csv(io.StringIO(text), sep="\t", dtype=str, keep_default_na=False)
        except (ValueError, pd.errors.ParserError) as error:
            raise UniDPOError(f"{path} cannot be read as tab-separated values: {error}") from error
    if not len(frame):
        raise UniDPOError(f"{path} has no rows")
    return frame


def _unquoted(cell: str) -> str:
    """A cell as it is, or what it quotes where quotation marks enclose it and those within are doubled."""
    inner = cell[1:-1]
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else cell


def _refuse_what_shifts_cells(path: Path, text: str) -> None:
    """Refuse a row with more cells than columns, and a quotation mark without its end, which swallows rows."""
    limit = csv.field_size_limit(sys.maxsize)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter="\t", strict=True)
    before = number = columns = 0
    try:
        for cells in reader:
            columns = columns or len(cells)
            if len(cells) > columns:
                raise UniDPOError(
                    f"{path}, row {number} (line {before + 1}): has {len(cells)} cells; the header has {columns}; "
                    "a tab within a text ends its cell: write a space in its place"
                )
            number += bool(cells)
            before = reader.line_num
    except csv.Error as error:
        raise UniDPOError(
            f"{path}, line {before + 1}: a cell begins with a quotation mark that does not end it; "
            f"write the mark twice and the cell in quotation marks ({error})"
        ) from error
    finally:
        csv.field_size_limit(limit)
