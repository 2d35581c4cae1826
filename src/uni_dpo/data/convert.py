"""From one layout of pairs to another, row by row."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from tqdm import tqdm

from uni_dpo.data.faults import Fault, PreferenceDataError
from uni_dpo.data.formats import format_named, llamafactory
from uni_dpo.data.formats.base import Format, Losses, Pairing
from uni_dpo.data.images import ImageFolder, image_paths
from uni_dpo.data.register import detect_entry
from uni_dpo.data.tables.reading import Row, Unreadable, read_rows, source_files, unreadable_fault
from uni_dpo.data.tables.writing import WRITTEN_TYPES, keep_inputs, write_rows
from uni_dpo.errors import UniDPOError

_KEPT_FAULTS = 1_000


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        read: rows read.
        written: rows written.
        losses: what the new format could not hold: its name → how often.
        skipped: rows that are not in the format, where they may be skipped.
        output: what was written.
    """

    output: Path
    read: int = 0
    written: int = 0
    losses: Losses = field(default_factory=Counter)
    skipped: list[Fault] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report, one line per fact."""
        lines = [f"rows read: {self.read:,}", f"rows written: {self.written:,}", f"output: {self.output}"]
        lines += [f"lost: {name}: {count:,}" for name, count in self.losses.most_common()]
        lines += [f"skipped: {fault}" for fault in self.skipped[:20]]
        return lines + ([f"skipped in all: {len(self.skipped):,}"] if self.skipped else [])


def convert(
    source: str | Path,
    output: str | Path,
    *,
    from_format: str = "llamafactory",
    to_format: str = "llamafactory",
    pairing: Pairing = "all",
    split: str | None = None,
    image_dir: str | Path | None = None,
    image_root: str | Path | None = None,
    skip_broken: bool = False,
) -> Conversion:
    """Rewrite a file or folder of rows from one format to another.

    Args:
        source: a file, a folder of files, or a folder written by `save_to_disk`.
        output: a .json, .jsonl or .parquet file, or (no suffix) a folder that `datasets.load_from_disk` opens.
        from_format: the layout of `source`; `auto` for pairs in LlamaFactory's layouts under other column names.
        to_format: the layout of `output`.
        pairing: which pairs a ranked list gives.
        split: which split of a saved `DatasetDict` to read; all when None.
        image_dir: copy the images there and name the copies; None names them as `source` does.
        image_root: where relative paths in `source` start, and which no path may leave, copied or not.
        skip_broken: leave out rows that are not in the format.

    Raises:
        PreferenceDataError: rows that are not in the format, all of them named.
    """
    output = Path(output)
    result = Conversion(output)
    if output.suffix == "" and output.exists():
        raise UniDPOError(f"{output}: is there already; name a new folder, or a {', '.join(WRITTEN_TYPES)} file")
    files = source_files(source, split)
    keep_inputs(output, files)
    store = ImageFolder(image_dir, image_paths(image_root, image_root))
    change = _row_changer(_source_format(from_format, source), format_named(to_format), pairing, result.losses, store)
    rows = _changed_rows(files, change, result, skip_broken)
    if output.suffix:
        result.written = write_rows(output, rows)
        return result
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as folder:
        table = Path(folder) / "rows.parquet"
        result.written = write_rows(table, rows)
        _save_dataset_dict(table, Path(folder) / "saved", split or "train").rename(output)
    return result


def _source_format(name: str, source: str | Path) -> Format:
    if name != "auto":
        return format_named(name)
    return Format("llamafactory (detected)", "", read=llamafactory.reader(detect_entry(source)))


def _row_changer(
    source: Format, target: Format, pairing: Pairing, losses: Losses, store: ImageFolder
) -> Callable[[Row], Iterator[Row]]:
    """A function from a row of one format to rows of the other."""
    if source.remap or target.remap:
        if source.remap and target.name.startswith("llamafactory"):
            remap = source.remap[0]
        elif target.remap and source.name.startswith("llamafactory"):
            remap = target.remap[1]
        else:
            raise UniDPOError(f"{source.name} → {target.name}: fine-tuning data goes to and from llamafactory only")
        return lambda row: iter([_with_stored_images(remap(row, losses), store)])
    if source.read is None or target.write is None:
        which = f"{source.name} is not read" if source.read is None else f"{target.name} is not written"
        raise UniDPOError(f"{source.name} → {target.name}: {which}")
    read, write = source.read, target.write

    def change(row: Row) -> Iterator[Row]:
        for pair in read(row, losses, pairing):
            yield write(replace(pair, images=tuple(map(store.put, pair.images))), losses)

    return change


def _with_stored_images(row: Row, store: ImageFolder) -> Row:
    return row | {"images": [store.put(image) for image in row["images"]]} if row.get("images") else row


def _changed_rows(
    files: Sequence[Path], change: Callable[[Row], Iterator[Row]], result: Conversion, skip_broken: bool
) -> Iterator[Row]:
    faults = 0
    for file in files:
        rows = tqdm(read_rows(file), desc=f"Converting {file.name}", unit=" rows", mininterval=1.0, delay=2.0)
        for index, row in rows:
            result.read += 1
            try:
                if isinstance(row, Unreadable):
                    raise PreferenceDataError.of([unreadable_fault(row, index, file)])
                yield from change(row)
            except PreferenceDataError as error:
                faults += len(error.faults)
                room = max(0, _KEPT_FAULTS - len(result.skipped))
                result.skipped += [replace(fault, row=index, file=file) for fault in error.faults[:room]]
    if faults and not skip_broken:
        raise PreferenceDataError.of(result.skipped, total=faults)


def _save_dataset_dict(table: Path, folder: Path, split: str) -> Path:
    """`table` as a `DatasetDict` whose images are images."""
    import datasets

    rows = datasets.Dataset.from_parquet(str(table), cache_dir=str(table.parent / "cache"))
    if "images" in rows.column_names:
        rows = rows.cast_column("images", datasets.Sequence(datasets.Image()))
    datasets.DatasetDict({split: rows}).save_to_disk(folder)
    return folder
