"""Recording: rows wait as tensors where the model is, and reach the disk in whole files at each checkpoint.

The texts of the pairs are written beside, so that a page can show them without the files that they came from.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch
from torch import Tensor

from uni_dpo.ledger.columns import LEDGER, NUMBERS, TEXTS
from uni_dpo.storage.identity import derive_seed, digest
from uni_dpo.storage.writing import replacing

WAITING = 65_536
"""Pairs that wait at most before a file is written."""
KEY, NAME = "pair_key", "pair_name"
"""Columns of a tokenized dataset: what batches know a pair by, and what it is called."""
COLUMNS = (KEY, NAME, "question", "chosen", "rejected", "images", "score_chosen", "score_rejected")
"""Columns of a tokenized dataset that are read here; only the first two must be there."""
_AT_ONCE = 1_000

Keep = Callable[[bytes], str | None]
"""Keeps the content of an image somewhere, and tells the file; None where it does not."""


@dataclass(frozen=True)
class _Batch:
    """Pairs of one forward pass: keys (n,), numbers (n, len(NUMBERS)) with NaN where there is none."""

    step: int
    epoch: int
    split: str
    keys: Tensor
    numbers: Tensor


class PairLedger:
    """The rows of one process of one training.

    Args:
        folder: where the files of all processes stand; see `columns.ledger_folder`.
        names: what the pairs are called.
        rank, ranks: the number of this process, from 0, and how many there are.
    """

    def __init__(self, folder: Path, names: "PairNames", rank: int = 0, ranks: int = 1) -> None:
        self.folder = folder
        self._names = names
        self._rank, self._ranks = rank, ranks
        self._waiting: list[_Batch] = []
        self._pairs = 0

    def add(self, split: str, step: int, epoch: int, keys: Tensor, numbers: Mapping[str, Tensor | None]) -> None:
        """Record the pairs of one forward pass. Costs one small copy on the model's device.

        Args:
            split, step, epoch: see `columns.LEDGER`.
            keys: (pairs,) int64.
            numbers: from names in `columns.NUMBERS` to values of shape (pairs,), or None.
        """
        missing = torch.full(keys.shape, torch.nan, device=keys.device)
        columns = [numbers.get(name) for name in NUMBERS]
        values = torch.stack([missing if column is None else column.detach().float() for column in columns], 1)
        self._waiting.append(_Batch(step, epoch, split, keys, values))
        self._pairs += len(keys)
        if self._pairs >= WAITING:
            self.flush()

    def waiting(self) -> pa.Table:
        """Return the rows that no file holds yet, with the columns `columns.LEDGER`."""
        if not self._waiting:
            return LEDGER.empty_table()
        numbers = torch.cat([batch.numbers for batch in self._waiting]).cpu().numpy()
        columns: dict[str, Any] = dict(zip(NUMBERS, numbers.T, strict=True))
        for side in ("policy", "reference"):
            columns[f"{side}_margin"] = columns[f"{side}_chosen"] - columns[f"{side}_rejected"]
        lengths = [len(batch.keys) for batch in self._waiting]
        for name in ("step", "epoch", "split"):
            columns[name] = np.repeat([getattr(batch, name) for batch in self._waiting], lengths).tolist()
        columns["pair"] = self._names.of(torch.cat([batch.keys for batch in self._waiting]).cpu().numpy())
        arrays = [pa.array(columns[field.name], from_pandas=True).cast(field.type) for field in LEDGER]
        return pa.Table.from_arrays(arrays, schema=LEDGER)

    def rows(self) -> pa.Table:
        """Return every row that this process recorded, by step."""
        parts = [pq.read_table(part, schema=LEDGER) for part in self._own_parts()]
        return pa.concat_tables([*parts, self.waiting()]).unify_dictionaries().sort_by([("step", "ascending")])

    def flush(self) -> None:
        """Write what waits as one file, whole or not at all."""
        if self._waiting:
            start = f"rank-{self._rank:04}-part-"
            taken = [int(part.stem.removeprefix(start)) for part in self.folder.glob(f"{start}*.parquet")]
            write_table(self.waiting(), self.folder / f"{start}{max(taken, default=0) + 1:06}.parquet")
            self._waiting.clear()
            self._pairs = 0

    def cut(self, step: int) -> None:
        """Remove what lies behind a checkpoint at `step`, which a resumed run does again; one process calls this."""
        for part in sorted(self.folder.glob("*.parquet")):
            _keep(part, pc.field("step") <= step)

    def forget(self, split: str, step: int) -> None:
        """Remove an evaluation that is about to be done again at the same step; all processes call this."""
        self._waiting = [batch for batch in self._waiting if (batch.split, batch.step) != (split, step)]
        self._pairs = sum(len(batch.keys) for batch in self._waiting)
        for part in self._own_parts():
            _keep(part, ~((pc.field("split").cast(pa.string()) == split) & (pc.field("step") == step)))

    def _own_parts(self) -> Iterator[Path]:
        """This process's files, and its share of those of a run that had more processes."""
        for part in sorted(self.folder.glob("rank-*.parquet")):
            if int(part.name.split("-")[1]) % self._ranks == self._rank:
                yield part


class PairNames:
    """What pairs are called, by the keys that batches carry.

    Args:
        keys: int64, in any order; of equal ones the first counts.
        names: as many.
    """

    def __init__(self, keys: np.ndarray, names: pa.Array) -> None:
        order = np.argsort(keys, kind="stable")
        self._keys, self._names = keys[order], names.take(pa.array(order))

    def of(self, keys: np.ndarray) -> pa.Array:
        """Return the names of some keys; a key without a name stands for itself in hexadecimal digits."""
        places = np.searchsorted(self._keys, keys)
        known = places < len(self._keys)
        known[known] = self._keys[places[known]] == keys[known]
        if known.all():
            return self._names.take(pa.array(places))
        found = [
            self._names[int(place)].as_py() if there else f"{key:016x}"
            for place, there, key in zip(places, known, keys, strict=True)
        ]
        return pa.array(found, pa.string())


def _keep(part: Path, rows: pc.Expression) -> None:
    """Leave in a file only the rows that an expression is true for, and no file where there are none."""
    table = pq.read_table(part, schema=LEDGER)
    kept = table.filter(rows)
    if not len(kept):
        part.unlink()
    elif len(kept) < len(table):
        write_table(kept, part)


def write_table(table: pa.Table, file: Path) -> None:
    """Write a table as Parquet, whole or not at all."""
    with replacing(file) as temporary:
        pq.write_table(table, temporary, compression="zstd")


def pair_key(name: str, question: str, chosen: str, rejected: str) -> int:
    """Return what a batch knows a pair by: a 63-bit number made from its name and texts."""
    return derive_seed(name, *(digest(text) for text in (question, chosen, rejected)))


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
        name = row[NAME]
        called[name] += 1
        if called[name] > 1:
            name += f", pair {called[name]}"
        texts = {column: row.get(column) for column in COLUMNS[2:]}
        rows.append({**texts, "pair": name, "key": row[KEY], "images": image_files(row.get("images"), keep)})
    return pa.Table.from_pylist(rows, schema=TEXTS)


def _rows(datasets: Iterable[Any]) -> Iterator[dict[str, Any]]:
    for dataset in datasets:
        if hasattr(dataset, "texts"):
            yield from dataset.texts()
            continue
        part = dataset.select_columns([name for name in COLUMNS if name in dataset.column_names])
        for columns in part.iter(_AT_ONCE):
            yield from (dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True))


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
