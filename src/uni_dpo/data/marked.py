"""Acting on pairs that were marked on a page: dropped, swapped, or set apart to be judged again."""

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from uni_dpo.data.columns import IMAGE_COLUMNS, is_empty
from uni_dpo.data.image_paths import leading
from uni_dpo.data.tables.reading import Row, iter_rows
from uni_dpo.data.tables.writing import check_output, keep_inputs, row_writer, write_rows
from uni_dpo.errors import UniDPOError

ACTIONS = ("drop", "rejudge", "swap")
_NAME = re.compile(r"(?P<file>.+), row (?P<row>\d+)", re.DOTALL)


@dataclass
class Applied:
    """What was done: rows per action, `keep` among them; the file of those to be judged again, if any."""

    rows: Counter[str] = field(default_factory=Counter)
    apart: Path | None = None

    def lines(self) -> list[str]:
        """Return the report, one line per fact."""
        names = {"keep": "kept", "drop": "dropped", "swap": "swapped", "rejudge": "to judge again"}
        lines = [f"rows {name}: {self.rows[action]:,}" for action, name in names.items()]
        return [*lines[:-1], f"{lines[-1]}, in {self.apart}" if self.apart else lines[-1]]


def apply_marks(source: str | Path, marked: str | Path, output: str | Path) -> Applied:
    """Write the rows of a data file without what was marked.

    Args:
        source: the file that was trained on.
        marked: the file that a page exported: `{"pair": "pairs.json, row 12", "action": "drop"}` per line.
        output: the new file. Rows to be judged again go to `NAME.rejudge.jsonl` beside it.

    Raises:
        UniDPOError: a mark cannot be read, or is of another file, of ranked answers, or of a row that is not there.
    """
    source, output = Path(source), Path(output)
    apart = output.with_suffix(".rejudge.jsonl")
    check_output(output, [source, marked])
    keep_inputs(apart, [source, marked])
    actions = _actions(Path(marked), source.name)
    done, lead = Applied(), leading(source, output)
    again: list[Row] = []
    count = -1
    with row_writer(output) as writer:
        for count, row in enumerate(iter_rows(source)):
            action = actions.pop(count, "keep")
            done.rows[action] += 1
            if action == "rejudge":
                again.append(lead(row))
            elif action != "drop":
                writer.write(lead(_swapped(row, f"{source}, row {count}") if action == "swap" else row))
        if actions:
            raise UniDPOError(f"{marked}: marks row {min(actions)}, and {source} has {count + 1:,} rows")
    if again:
        done.apart = apart
        write_rows(apart, again)
    return done


def _swapped(row: Row, place: str) -> Row:
    """The row with everything exchanged that is the chosen answer's and the rejected one's: texts, scores, images."""
    swaps = {name: name.replace("chosen", "rejected") for name in row if "chosen" in name}
    if swaps.get("chosen") not in row:
        raise UniDPOError(f"{place}: has no columns `chosen` and `rejected` to swap; swap its answers in the file")
    if not is_empty(row.get("rejected_images")):
        swaps |= dict.fromkeys([name for name in IMAGE_COLUMNS if name in row][:1], "rejected_images")
    changed = dict(row)
    for one, other in swaps.items():
        if one in row and other in row:
            changed[one], changed[other] = row[other], row[one]
    return changed


def _actions(marked: Path, name: str) -> dict[int, str]:
    """What is to be done with which row."""
    found: dict[int, str] = {}
    for line, row in enumerate(iter_rows(marked), 1):
        pair, action = str(row.get("pair")), str(row.get("action"))
        match = _NAME.fullmatch(pair)
        if match is None:
            raise UniDPOError(
                f"{marked}, line {line}, pair: {pair!r} is no row of a file of pairs (`FILE, row N`); rows of ranked "
                "answers are changed in their file"
            )
        if match["file"] != name:
            raise UniDPOError(f"{marked}, line {line}, pair: is of {match['file']}, and the data are {name}")
        if action not in ACTIONS:
            raise UniDPOError(f"{marked}, line {line}, action: {action!r}; write {', '.join(ACTIONS)}")
        if (before := found.setdefault(int(match["row"]), action)) != action:
            raise UniDPOError(f"{marked}, line {line}, pair: row {match['row']} has the mark {before} too; keep one")
    return found
