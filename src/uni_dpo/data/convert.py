"""From one layout of pairs to another, row by row."""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from uni_dpo.data.columns import items_of
from uni_dpo.data.faults import KEPT_FAULTS, Fault, PreferenceDataError
from uni_dpo.data.formats import format_named, source_format
from uni_dpo.data.formats.base import Format, Losses, Pairing, SourceRow
from uni_dpo.data.image_state import BrokenImageError
from uni_dpo.data.images import ImageFolder, ImagePaths, image_paths, image_source, source_state
from uni_dpo.data.pair import Image
from uni_dpo.data.tables.reading import Row, Unreadable, counted, numbered_rows, one_split, splits_of, unreadable_fault
from uni_dpo.data.tables.writing import WRITTEN_TYPES, check_output, write_rows
from uni_dpo.errors import UniDPOError
from uni_dpo.storage.writing import new_folder

_FINE_TUNING = ("llamafactory", "llamafactory-sharegpt")
"""LlamaFactory's layouts that fine-tuning data come from and go to, as `conversations`."""
Moved = Callable[[Sequence[Image]], tuple[Image, ...]]
"""The images of a row → what stands for them in the output."""


@dataclass
class Conversion:
    """What a conversion did.

    Attributes:
        detected: the format of what was read, where it was found by the columns.
        mapped: what a column of the format is called in what was read.
        columns: the columns of what was read, where some are mapped.
        losses: what the new format could not hold: its name → how often.
        skipped: rows that are not in the format, where they may be skipped.
    """

    output: Path
    detected: str = ""
    mapped: Mapping[str, str] = field(default_factory=dict)
    columns: dict[str, None] = field(default_factory=dict)
    read: int = 0
    written: int = 0
    losses: Losses = field(default_factory=Counter)
    skipped: list[Fault] = field(default_factory=list)

    def lines(self) -> list[str]:
        """Return the report, one line per fact."""
        lines = [f"rows read: {self.read:,}", f"rows written: {self.written:,}", f"output: {self.output}"]
        lines += [f"read as: {self.detected}"] if self.detected else []
        lines += [f"lost: {name}: {count:,}" for name, count in self.losses.most_common() if count]
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
    columns: Mapping[str, str] | None = None,
    image_dir: str | Path | None = None,
    image_root: str | Path | None = None,
    skip_broken: bool = False,
) -> Conversion:
    """Rewrite a file or folder of rows from one format to another.

    Args:
        source: a file, a folder of files, or a folder written by `save_to_disk`.
        output: a .json, .jsonl or .parquet file, or (no suffix) a folder that `datasets.load_from_disk` opens, with
            the images in it.
        from_format, to_format: the layouts of the two; `auto` finds the first by the columns.
        pairing: which pairs a ranked list gives.
        split: which split of `source` to read; None reads the only one, and for a folder all, kept apart.
        columns: what a column of the format is called in `source`.
        image_dir: copy the images there and name the copies; None names them as `source` does.
        image_root: where relative paths in `source` start, and which no path may leave, copied or not; None starts
            them beside `source`, then in the working folder.
        skip_broken: leave out rows that are not in the format.

    Raises:
        PreferenceDataError: rows that are not in the format, all of them named, or several splits for one file.
    """
    output = Path(output)
    if output.suffix == "" and output.exists():
        raise UniDPOError(f"{output}: is there already; name a new folder, or a {', '.join(WRITTEN_TYPES)} file")
    apart = output.suffix == "" and split is None
    splits = splits_of(source) if apart else {split or "train": one_split(source, split)}
    files = [file for files in splits.values() for file in files]
    if output.suffix:
        check_output(output, files)
    origin = source_format(from_format, files, columns or {})
    result = Conversion(output, detected=origin.name if from_format == "auto" else "", mapped=columns or {})
    beside = None if image_root is not None else files[0].parent
    paths = image_paths(image_root, image_root, beside)
    read_from = (paths if image_dir is None else ImagePaths()) if output.suffix == "" else None
    images = partial(_moved, folder=ImageFolder(image_dir, paths), read_from=read_from)
    change = _row_changer(origin, format_named(to_format), pairing, result.losses, images)
    rows = {name: _changed_rows(split_files, change, result, skip_broken) for name, split_files in splits.items()}
    if output.suffix:
        result.written = write_rows(output, *rows.values())
    else:
        _write_folder(output, rows, result)
    return result


def parse_columns(parts: Sequence[str]) -> dict[str, str]:
    """Return `FIELD=COLUMN` texts as field → column.

    Raises:
        UniDPOError: one has no `=`, or nothing on one side of it, or a field is given twice.
    """
    columns: dict[str, str] = {}
    for part in parts:
        name, _, column = part.partition("=")
        if not name or not column:
            raise UniDPOError(f"{part!r}: write FIELD=COLUMN, such as chosen=good")
        if name in columns:
            raise UniDPOError(f"{name} is taken from {columns[name]} and from {column}; name one column for it")
        columns[name] = column
    return columns


def _moved(images: Sequence[Image], folder: ImageFolder, read_from: ImagePaths | None) -> tuple[Image, ...]:
    """What becomes of the images of a pair: they are checked, copied, or read into the output."""
    moved = tuple(map(folder.put, images))
    return moved if read_from is None else tuple(_embedded(image, read_from) for image in moved)


def _embedded(image: Image, paths: ImagePaths) -> Image:
    try:
        source = image_source(image, paths)
        source_state(source, str(source) if isinstance(source, Path) else "", decode=False)
        encoded = source if isinstance(source, bytes) else source.read_bytes()
    except BrokenImageError as broken:
        raise PreferenceDataError.of([Fault(broken.kind, "images", broken.found, broken.advice)]) from None
    except OSError as error:
        raise PreferenceDataError.of([Fault("image", "images", f"cannot be read ({error.strerror})", "")]) from None
    return {"bytes": encoded, "path": None if isinstance(source, bytes) else source.name}


def _row_changer(
    source: Format, target: Format, pairing: Pairing, losses: Losses, moved: Moved
) -> Callable[[Row], Iterator[Row]]:
    """A function from a row of one format to rows of the other."""
    if source.remap or target.remap:
        remap = None
        if source.remap and target.name in _FINE_TUNING:
            remap = source.remap[0]
        elif target.remap and source.name in _FINE_TUNING:
            remap = target.remap[1]
        if remap is None:
            known = " or ".join(_FINE_TUNING)
            raise UniDPOError(f"{source.name} → {target.name}: fine-tuning data goes to and from {known} only")
        change_row = remap

        def remapped(row: Row) -> Iterator[Row]:
            watched = SourceRow(_with_images(row, moved) if target.remap else row, losses)
            changed = change_row(watched)
            watched.count_lost(changed)
            yield _with_images(changed, moved) if source.remap else changed

        return remapped
    if source.read is None or target.write is None:
        which = f"{source.name} is not read" if source.read is None else f"{target.name} is not written"
        raise UniDPOError(f"{source.name} → {target.name}: {which}")
    read, write = source.read, target.write

    def change(row: Row) -> Iterator[Row]:
        watched = SourceRow(row, losses, pairing)
        pairs = list(read(watched))
        watched.count_lost()
        for pair in pairs:
            shown, rejected = moved(pair.images), moved(pair.rejected_images)
            yield write(replace(pair, images=shown, rejected_images=rejected), losses)

    return change


def _with_images(row: Row, moved: Moved) -> Row:
    items = items_of(row.get("images"))
    return row | {"images": list(moved(items))} if items else row


def _renamed(row: Row, result: Conversion) -> Row:
    """A row whose columns have the format's names, where they are called otherwise."""
    result.columns |= dict.fromkeys(row)
    present = {name: row[column] for name, column in result.mapped.items() if column in row}
    for name in present.keys() & row.keys():
        result.losses[f"column {name}, replaced by --map"] += result.mapped[name] != name
    return {name: value for name, value in row.items() if name not in result.mapped.values()} | present


def _changed_rows(
    files: Sequence[Path], change: Callable[[Row], Iterator[Row]], result: Conversion, skip_broken: bool
) -> Iterator[Row]:
    faults = 0
    for file in files:
        for index, line, row in counted(numbered_rows(file), f"Converting {file.name}"):
            result.read += 1
            try:
                if isinstance(row, Unreadable):
                    raise PreferenceDataError.of([unreadable_fault(row, index, file, line)])
                yield from change(_renamed(row, result) if result.mapped else row)
            except PreferenceDataError as error:
                faults += len(error.faults)
                kept = error.faults[: KEPT_FAULTS - len(result.skipped)]
                result.skipped += [replace(fault, row=index, file=file, line=line) for fault in kept]
    if absent := [column for column in result.mapped.values() if column not in result.columns]:
        has = ", ".join(result.columns)
        raise PreferenceDataError(f"{files[0]}: no column {absent[0]!r} (it has {has}); check --map")
    if faults and not skip_broken:
        refusal = PreferenceDataError.of(result.skipped, total=faults)
        raise PreferenceDataError(f"{refusal}\nnothing is written; --skip-broken leaves these rows out", refusal.faults)


def _write_folder(output: Path, splits: Mapping[str, Iterator[Row]], result: Conversion) -> None:
    """Save a `DatasetDict` whose images are images; the folder gets its name when it is whole."""
    import datasets

    with new_folder(output) as saved_to, tempfile.TemporaryDirectory(dir=saved_to.parent) as folder:
        saved = {}
        for number, (name, rows) in enumerate(splits.items()):
            table = Path(folder) / f"{number}.parquet"
            try:
                result.written += write_rows(table, rows)
            except PreferenceDataError as error:
                raise PreferenceDataError(str(error).replace(str(table), str(output)), error.faults) from None
            split = datasets.Dataset.from_parquet(str(table), cache_dir=str(Path(folder) / "cache"))
            for column, kind in (("images", datasets.Sequence(datasets.Image())), ("image", datasets.Image())):
                if column in split.column_names and _holds_images(split.features[column]):
                    split = split.cast_column(column, kind)
            saved[name] = split
        datasets.DatasetDict(saved).save_to_disk(saved_to)


def _holds_images(feature: Any) -> bool:
    """Whether a column of a saved table is `{"bytes", "path"}`, or a list of them."""
    feature = getattr(feature, "feature", feature)
    return isinstance(feature, dict) and feature.keys() == {"bytes", "path"}
