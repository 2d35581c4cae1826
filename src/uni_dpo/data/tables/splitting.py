"""Splitting, merging and sampling rows; what belongs together stays together, and a seed fixes what is drawn."""

import hashlib
import json
import os
import random
from array import array
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from uni_dpo.data.cells import without_placeholders
from uni_dpo.data.columns import IMAGE_COLUMNS, PROMPT_COLUMNS, VIDEO_COLUMNS, first_filled, items_of
from uni_dpo.data.faults import PreferenceDataError
from uni_dpo.data.image_paths import leading
from uni_dpo.data.tables.reading import Row, one_split, shown_rows
from uni_dpo.data.tables.writing import keep_inputs, row_writer, write_rows
from uni_dpo.errors import UniDPOError
from uni_dpo.settings.options import as_number

SLACK = 0.011
"""How far shares may be from 1 together, so that three times 0.33 will do."""


_SHOWN = (IMAGE_COLUMNS, ("rejected_images",), VIDEO_COLUMNS)


def group_keys(row: Row, by: str) -> list[Hashable]:
    """Return what a row shares with the rows that must stay with it; a row that has nothing there stands alone.

    That is, by `image`, each of its images, the rejected answer's too, and videos; else its `prompt`, or a column.
    """
    if by == "image":
        shown = (item for columns in _SHOWN for item in items_of(first_filled(row, columns)))
        return [_image_key(image) for item in shown for image in (item if isinstance(item, list) else [item])]
    if by == "prompt":
        value = first_filled(row, PROMPT_COLUMNS)
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=repr)
        return [] if value is None else [_digest(without_placeholders(text).encode(errors="surrogatepass"))]
    if by not in row:
        raise PreferenceDataError(f"column {by!r}: not in a row (it has {', '.join(map(str, row))})")
    return [] if row[by] is None else [_digest(repr(row[by]).encode(errors="surrogatepass"))]


def _image_key(image: Any) -> bytes:
    if isinstance(image, dict):
        image = image["bytes"] if image.get("bytes") is not None else image.get("path")
    return _digest(image if isinstance(image, bytes) else os.path.normpath(str(image)).encode(errors="surrogatepass"))


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=8).digest()


def row_groups(rows: Iterable[Row], by: str | None) -> array:
    """Return the number of each row's group; rows that share a key, also through other rows, share the group."""
    parents = array("l")
    owners: dict[Hashable, int] = {}

    def root(index: int) -> int:
        while parents[index] != index:
            parents[index] = parents[parents[index]]
            index = parents[index]
        return index

    for index, row in enumerate(rows):
        parents.append(index)
        for key in group_keys(row, by) if by else ():
            parents[root(index)] = root(owners.setdefault(key, index))
    return array("l", (root(index) for index in range(len(parents))))


def split(
    source: str | Path,
    shares: Mapping[str | Path, float],
    *,
    by: str | None = "image",
    image_root: str | Path | None = None,
    seed: int = 0,
) -> dict[Path, int]:
    """Write each row into one of several files.

    Groups are drawn in random order and each goes to the file that is furthest from its share.

    Args:
        source: a file or folder of rows.
        shares: file → its share of the rows. Shares below 1 sum to 1; others are scaled, as 9 and 1.
        by: what no two files may share: `image`, `prompt` or a column; None splits row by row.
        image_root: where paths start, which stay as they are; None for beside each file.
        seed: fixes the draw.

    Returns:
        File → rows written, in the order of `source`.
    """
    if any(share <= 0 for share in shares.values()) or len(shares) < 2:
        raise UniDPOError("split: name two or more files, each with a share above 0")
    if all(share < 1 for share in shares.values()) and abs(total := sum(shares.values()) - 1) > SLACK:
        said = " + ".join(f"{share:g}" for share in shares.values())
        raise UniDPOError(
            f"split: {said} is {total + 1:g} and not 1; name a file for the rest, or weights such as 9 and 1"
        )
    files = [Path(file) for file in shares]
    for file in files:
        keep_inputs(file, one_split(source))
    groups = row_groups(shown_rows(source, "Reading"), by)
    members = Counter(groups)
    order = list(members)
    random.Random(seed).shuffle(order)
    order.sort(key=lambda group: -members[group])  # stable: large groups first, random among equals
    wanted = [share * len(groups) / sum(shares.values()) for share in shares.values()]
    filled = [0] * len(files)
    place: dict[int, int] = {}
    for group in order:
        place[group] = max(range(len(files)), key=lambda index: wanted[index] - filled[index])
        filled[place[group]] += members[group]
    if empty := [str(file) for file, count in zip(files, filled, strict=True) if not count]:
        raise UniDPOError(
            f"{', '.join(empty)}: would get no row: {len(members)} groups by {by} are too few or too large"
        )
    with ExitStack() as stack:
        writers = [stack.enter_context(row_writer(file)) for file in files]
        leads = [leading(source, file) for file in files]
        for group, row in zip(groups, shown_rows(source, "Writing"), strict=True):
            at = place[group]
            writers[at].write(row if image_root else leads[at](row))
    return dict(zip(files, filled, strict=True))


def sample(source: str | Path, output: str | Path, count: int, *, by: str | None = None, seed: int = 0) -> int:
    """Write `count` rows drawn at random (with `by`, whole groups up to it), in the order of `source`; count them."""
    if count < 1:
        raise UniDPOError(f"sample: {count} rows; ask for one or more")
    keep_inputs(output, one_split(source))
    groups = row_groups(shown_rows(source, "Reading"), by)
    sizes = Counter(groups)
    order = list(sizes)
    random.Random(seed).shuffle(order)
    taken: set[int] = set()
    room = count
    for group in order:
        if sizes[group] <= room:
            taken.add(group)
            room -= sizes[group]
    rows = zip(groups, shown_rows(source, "Writing"), strict=True)
    lead = leading(source, output)
    return write_rows(output, (lead(row) for group, row in rows if group in taken))


def merge(sources: Sequence[str | Path], output: str | Path, *, source_column: str | None = None) -> dict[str, int]:
    """Write the rows of several files or folders one after the other, and count those of each.

    With `source_column` every row gets such a column, with the name of the file that it came from.

    Raises:
        PreferenceDataError: a source whose columns are not those of the first.
    """
    for source in sources:
        keep_inputs(output, one_split(source))
    counts: dict[str, int] = {}
    layout: set[str] = set()
    with row_writer(output) as writer:
        for source in sources:
            for at, row in enumerate(map(leading(source, output), shown_rows(source, "Merging"))):
                # texts must stand under the same names; scores, ids and the like may be there or not
                texts = row.keys() & set(PROMPT_COLUMNS) if not at else layout
                layout = layout or texts
                if texts != layout:
                    found = f"holds {sorted(texts)} where the first file holds {sorted(layout)}"
                    raise PreferenceDataError(f"{source}: {found}; convert it first with `uni-dpo data convert`")
                if source_column in row:
                    raise UniDPOError(f"{source}: has a column {source_column!r} already; name another --source-column")
                counts[str(source)] = counts.get(str(source), 0) + 1
                writer.write(row | ({source_column: Path(source).name} if source_column else {}))
    return counts


def parse_shares(parts: Sequence[str]) -> dict[str | Path, float]:
    """Return `FILE=SHARE` texts as file → share.

    Raises:
        UniDPOError: one has no `=`, or no number after it, or a file is given twice.
    """
    shares: dict[str | Path, float] = {}
    for part in parts:
        file, _, share = part.rpartition("=")
        if Path(file).resolve() in (Path(other).resolve() for other in shares):
            raise UniDPOError(f"{file} is given twice; name another file for each share")
        number = as_number(share)
        if not file or number is None:
            raise UniDPOError(f"{part!r}: write FILE=SHARE, such as train.jsonl=0.9")
        shares[file] = number
    return shares
