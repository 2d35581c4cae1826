"""The texts of the pairs beside the ledger, so that a page can show them without the files that they came from."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from uni_dpo.ledger.columns import TEXTS
from uni_dpo.ledger.writing import PairNames
from uni_dpo.storage.identity import derive_seed, digest
from uni_dpo.storage.writing import replacing

KEY, NAME = "pair_key", "pair_name"
"""Columns of a tokenized dataset: what batches know a pair by, and what it is called."""
COLUMNS = (KEY, NAME, "question", "chosen", "rejected", "images", "score_chosen", "score_rejected")
"""Columns of a tokenized dataset that are read here; only the first two must be there."""
_AT_ONCE = 1_000


def pair_key(name: str, question: str, chosen: str, rejected: str) -> int:
    """Return what a batch knows a pair by: a 63-bit number made from its name and texts."""
    return derive_seed(name, *(digest(text) for text in (question, chosen, rejected)))


Keep = Callable[[bytes], str | None]
"""Keeps the content of an image somewhere, and tells the file; None where it does not."""


def pair_texts(datasets: Iterable[Any], keep: Keep = lambda content: None) -> pa.Table:
    """Collect the texts of tokenized datasets that can be read more than once.

    Args:
        datasets: `datasets.Dataset` with `COLUMNS`, or anything whose `texts()` gives rows of them.
        keep: takes images that are stored inside a dataset.

    Returns:
        Columns `TEXTS`, one row per key. Of pairs that are called the same, the second is called `NAME, pair 2`.
    """
    seen: set[int] = set()
    called: Counter[str] = Counter()
    rows = []
    for row in _rows(datasets):
        if row[KEY] in seen:
            continue
        seen.add(row[KEY])
        called[row[NAME]] += 1
        count = called[row[NAME]]
        name = row[NAME] if count == 1 else f"{row[NAME]}, pair {count}"
        texts = {column: row.get(column) for column in COLUMNS[2:]}
        rows.append({**texts, "pair": name, "key": row[KEY], "images": image_files(row.get("images"), keep)})
    return pa.Table.from_pylist(rows, schema=TEXTS)


def _rows(datasets: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for dataset in datasets:
        if hasattr(dataset, "texts"):
            yield from dataset.texts()
            continue
        part = dataset.select_columns([name for name in COLUMNS if name in dataset.column_names])
        for start in range(0, len(part), _AT_ONCE):
            columns = part[start : start + _AT_ONCE]
            for at in range(len(columns[KEY])):
                yield {name: values[at] for name, values in columns.items()}


def image_files(images: Iterable[Any] | None, keep: Keep) -> list[str]:
    """Return the files of images, each a path, or path and content as `datasets` has them; without those of none."""
    found = []
    for image in images or ():
        path, content = (image.get("path"), image.get("bytes")) if isinstance(image, Mapping) else (image, None)
        if content and not (isinstance(path, str) and Path(path).is_file()):
            path = keep(content)
        if isinstance(path, str):
            found.append(path)
    return found


def fingerprint(texts: pa.Table) -> str:
    """Return what a set of pairs is known by, whatever their order: 16 hexadecimal digits of their texts and scores."""
    columns = (texts[name].to_pylist() for name in ("key", "score_chosen", "score_rejected"))
    return digest(sorted(f"{key} {chosen} {rejected}" for key, chosen, rejected in zip(*columns, strict=True)))


def names_of(texts: pa.Table) -> PairNames:
    """Return the names that a ledger gives the pairs of these texts."""
    return PairNames(texts["key"].to_numpy(), texts["pair"].combine_chunks())


def write_texts(texts: pa.Table, file: Path) -> None:
    """Write the texts, whole or not at all."""
    with replacing(file) as temporary:
        pq.write_table(texts, temporary, compression="zstd")
