"""From an entry of the configuration to a VLMEvalKit dataset, with every fault of the data found first."""

import hashlib
import inspect
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.vlmeval.config import Benchmark
from uni_dpo.vlmeval.kit import DATA_VARIABLE, data_root
from uni_dpo.vlmeval.table import read_benchmark_table, read_own_table, safe_name


@dataclass(frozen=True)
class Picture:
    """An image file that was read to its end."""

    digest: str
    width: int
    height: int

    def tokens(self, min_pixels: int | None, max_pixels: int | None) -> int:
        """About how many tokens it becomes: one per 28 × 28 pixels after Qwen's resizing."""
        pixels = max(self.width * self.height, min_pixels or 0)
        return min(pixels, max_pixels or pixels) // (28 * 28)


@dataclass(frozen=True)
class Loaded:
    """A benchmark, ready to be asked."""

    benchmark: Benchmark
    dataset: Any
    source: str
    """What the rows come from: `official`, `modified` (a changed copy of a published file) or `own` data."""
    digest: str
    """Of the file that holds the rows."""
    faults: Mapping[str, str]
    """Rows that are not in `dataset`: index → which, and why."""
    pictures: dict[str, Picture] = field(default_factory=dict)
    """The images that were read so far, by path: once for all models."""


def load_benchmark(
    benchmark: Benchmark, images: Path, *, allow_modified: bool = False, download: bool = False
) -> Loaded:
    """Build the dataset of one benchmark.

    Args:
        benchmark: its entry.
        images: where images of own and of modified data are unpacked, a folder per version of the file.
        allow_modified: take a file that is not the published one.
        download: let VLMEvalKit fetch a file that is missing.

    Raises:
        UniDPOError: unknown class or name, a file that is missing or not the published one, columns that are missing.
    """
    published = _published_class(benchmark) if benchmark.path is None else None
    if published is None:
        return _own(benchmark, images)
    if getattr(published, "MODALITY", "IMAGE") == "VIDEO" or getattr(published, "TYPE", "") == "MT":
        raise UniDPOError(
            f"{benchmark.name}: videos and conversations of several turns run with VLMEvalKit's own run.py and "
            "the overlay; this command evaluates one question per row"
        )
    if not _reads_one_tsv(published, benchmark.dataset):
        return Loaded(benchmark, published(dataset=benchmark.dataset), "official", benchmark.dataset, {})
    path = data_root() / f"{benchmark.dataset}.tsv"
    address = published.DATASET_URL.get(benchmark.dataset)
    if not path.is_file():
        if not address:
            raise UniDPOError(
                f"{benchmark.name}: {benchmark.class_name} has no benchmark {benchmark.dataset!r}, and there is no "
                f"{path} with data of your own"
            )
        if not download:
            raise _missing(benchmark, path, address)
        try:
            return _official(benchmark, published, path)
        except Exception as error:  # VLMEvalKit raises a bare Exception
            raise UniDPOError(f"{benchmark.name}: {error}") from error
    found, expected = file_digest(path), published.DATASET_MD5.get(benchmark.dataset)
    if address and expected in (None, found):
        return _official(benchmark, published, path)
    if address and not allow_modified:
        raise UniDPOError(
            f"{benchmark.name}: {path} is not the published file (md5 {found}, published {expected}); "
            "to evaluate on it all the same, and have the table say so, give --allow-modified-data"
        )
    return _changed(benchmark, published, path, found, images, "modified" if address else "own")


def _published_class(benchmark: Benchmark) -> Any | None:
    """VLMEvalKit's class of the benchmark; `None` for a table of the user's own."""
    import vlmeval.dataset as kit

    name = benchmark.class_name
    if name is None:
        if benchmark.kind is not None:
            return None
        return next((c for c in kit.DATASET_CLASSES if benchmark.dataset in c.supported_datasets()), None)
    if name == "CustomVQADataset":  # VLMEvalKit loads such data and has no score for it
        return None
    known = {c.__name__: c for c in kit.DATASET_CLASSES}
    if name not in known:
        raise UniDPOError(f"{benchmark.name}: VLMEvalKit has no dataset class {name!r}{did_you_mean(name, known)}")
    return known[name]


def _reads_one_tsv(published: Any, name: str) -> bool:
    from vlmeval.dataset.image_base import ImageBaseDataset

    return ImageBaseDataset in inspect.getmro(published) and published.load_data is ImageBaseDataset.load_data


def _missing(benchmark: Benchmark, path: Path, address: str) -> UniDPOError:
    folder = "" if path.parent.is_dir() else " (the folder does not exist)"
    where = "LMUData" if os.environ.get(DATA_VARIABLE) else "LMUData is not set"
    return UniDPOError(
        f"{benchmark.name}: looked for {path.name} in {path.parent}{folder} ({where}); download "
        f"{address} to there, or give --download"
    )


def _official(benchmark: Benchmark, published: Any, path: Path) -> Loaded:
    path.parent.mkdir(parents=True, exist_ok=True)
    return Loaded(benchmark, published(dataset=benchmark.dataset), "official", file_digest(path), {})


def _changed(benchmark: Benchmark, published: Any, path: Path, digest: str, images: Path, source: str) -> Loaded:
    """A file that is not a published one, in VLMEvalKit's class: checked, then read as VLMEvalKit reads it."""
    table = read_benchmark_table(path, published.TYPE)
    # A subclass with the published name: VLMEvalKit would fetch the published file over the user's.
    as_read = type(published.__name__, (published,), {"load_data": lambda self, dataset: table.frame})
    try:
        dataset = as_read(dataset=benchmark.dataset)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise UniDPOError(f"{benchmark.name}: VLMEvalKit cannot read {path}: {error!r}") from error
    dataset.img_root = str(images / f"{safe_name(benchmark.name)}-{digest[:8]}")
    return Loaded(benchmark, dataset, source, digest, table.faults)


def _own(benchmark: Benchmark, images: Path) -> Loaded:
    from uni_dpo.vlmeval.own_data import OWN_CLASSES

    path = benchmark.path
    if path is None:
        path = data_root() / f"{benchmark.dataset}.tsv"
        if not path.is_file():
            raise UniDPOError(
                f"{benchmark.name}: {benchmark.dataset!r} is no benchmark of VLMEvalKit, and there is no {path} "
                f'with data of your own; give "path" or put it there'
            )
    kind = benchmark.kind or ("VQA" if benchmark.class_name else None)
    try:
        table = read_own_table(path, kind, benchmark.image_root)
    except UniDPOError as error:
        raise UniDPOError(f"{benchmark.name}: {error}") from error
    digest = file_digest(path)
    with _unpacking_to(images):
        dataset = OWN_CLASSES[table.kind](table)
    dataset.img_root = str(images / f"{safe_name(benchmark.name)}-{digest[:8]}")
    return Loaded(benchmark, dataset, "own", digest, table.faults)


@contextmanager
def _unpacking_to(folder: Path) -> Iterator[None]:
    """Keep VLMEvalKit from making `~/LMUData` for data that does not lie there."""
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get(DATA_VARIABLE)
    os.environ[DATA_VARIABLE] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ[DATA_VARIABLE]
        else:
            os.environ[DATA_VARIABLE] = before


def file_digest(path: Path) -> str:
    """MD5 of a file, as VLMEvalKit publishes them."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
