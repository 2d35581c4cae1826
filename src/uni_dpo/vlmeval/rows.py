"""The questions of a benchmark, checked before any weights are loaded, and the answers that a run has finished."""

import base64
import hashlib
import importlib
import io
import json
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from uni_dpo.data.image_state import BrokenImageError, check_shape, image_state
from uni_dpo.models.checkpoint import Checkpoint
from uni_dpo.storage.identity import file_digest
from uni_dpo.storage.rowlog import Row, RowLog, log_lines
from uni_dpo.storage.writing import regular, write_text
from uni_dpo.vlmeval.load import Loaded, Picture

if TYPE_CHECKING:
    from uni_dpo.vlmeval.qwen2_vl import Qwen2VLChat

    Bar = tqdm[Any]

CIRCULAR_STEP = 1_000_000
"""MMBench asks a question again with its options rotated: the index grows by this much each time."""


@dataclass(frozen=True)
class AskedRow:
    """One row, worded for a model."""

    index: str
    message: Sequence[Mapping[str, str]]
    images: Sequence[Picture]

    def length(self, model: "Qwen2VLChat") -> int:
        """About how many tokens its prompt has: what batches are sorted by."""
        text = sum(len(item["value"]) for item in self.message if item["type"] == "text")
        return text // 3 + sum(picture.tokens(model.min_pixels, model.max_pixels) for picture in self.images)


def build_questions(model: "Qwen2VLChat", loaded: Loaded, limit: int | None) -> tuple[list[AskedRow], dict[str, str]]:
    """Word the rows up to `limit`, or all, as a model wants it, whose weights are not needed, and read their images.

    Returns:
        The questions in the order of the file, and of the rows that cannot be asked: index → which, and why.
    """
    model.set_dump_image(loaded.dataset.dump_image)
    frame = loaded.dataset.data.iloc[:limit]
    rows = [frame.iloc[position] for position in range(len(frame))]

    def build(group: list[int]) -> list[tuple[int, AskedRow | str]]:
        return [(position, _question(model, loaded, rows[position])) for position in group]

    sharing = defaultdict(list)  # an image file: no two threads unpack to it at once
    for position, row in enumerate(rows):
        sharing[str(row.get("image_path", position))].append(position)
    built: dict[int, AskedRow | str] = {}
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        progress_bar(f"{loaded.benchmark.name}: reading images", len(rows), shown=is_first_process()) as progress,
    ):
        for part in pool.map(build, sharing.values()):
            built.update(part)
            progress.update(len(part))
    questions, faults = [], {}
    for at, row in enumerate(rows):
        if isinstance(asked := built[at], AskedRow):
            questions.append(asked)
        else:
            faults[str(row["index"])] = f"row {at + 1} (index {row['index']}): {asked}"
    return questions, faults


def _question(model: "Qwen2VLChat", loaded: Loaded, row: Any) -> AskedRow | str:
    try:
        try:
            message, pictures = _worded(model, loaded, row)
        except (OSError, ValueError, SyntaxError) as error:
            if "image" not in row:
                raise
            # CMYK and its like: VLMEvalKit unpacks to PNG, which has no such mode.
            if "cannot write mode" in str(error):
                row = row.copy()
                row["image"] = _in_rgb(row["image"])
            for path in _unpacked(loaded, row):  # half a file, left by a run that was killed while unpacking
                path.unlink(missing_ok=True)
            message, pictures = _worded(model, loaded, row)
    except Exception as error:  # base64, PIL and VLMEvalKit's assertions each raise what they like
        said = "no image that Pillow reads" if "cannot identify image" in str(error) else str(error)
        return said if isinstance(error, BrokenImageError) else f"{type(error).__name__}: {said}".rstrip(": ")
    return AskedRow(str(row["index"]), message, pictures)


def _worded(model: "Qwen2VLChat", loaded: Loaded, row: Any) -> tuple[Any, list[Picture]]:
    message = _message(model, loaded, row)
    return message, [_read(item["value"], loaded) for item in message if item["type"] == "image"]


def _unpacked(loaded: Loaded, row: Any) -> list[Path]:
    """Where VLMEvalKit unpacks the images of a row to."""
    names = row.get("image_path")
    if isinstance(names, str):
        names = [names]
    elif not isinstance(names, list):
        several = isinstance(row["image"], list)
        names = [f"{row['index']}_{at}.png" for at in range(len(row["image"]))] if several else [f"{row['index']}.png"]
    return [Path(loaded.dataset.img_root, name) for name in names]


def _in_rgb(image: str | list[str]) -> str | list[str]:
    """Base64 images in a mode that PNG has."""
    if isinstance(image, list):
        return [str(_in_rgb(one)) for one in image]
    from PIL import Image

    written = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(image))) as opened:
        opened.convert("RGB").save(written, "PNG")
    return base64.b64encode(written.getvalue()).decode()


def _message(model: "Qwen2VLChat", loaded: Loaded, row: Any) -> Any:
    """Choose who words the question, as VLMEvalKit's own loop does: the model, or the dataset."""
    dataset, name = loaded.dataset, loaded.dataset.dataset_name
    if loaded.benchmark.prompt == "plain":
        from vlmeval.dataset.image_base import ImageBaseDataset

        return ImageBaseDataset.build_prompt(dataset, row)
    if not getattr(dataset, "force_use_dataset_prompt", False) and model.use_custom_prompt(name):
        return model.build_prompt(row, dataset=name)
    return dataset.build_prompt(row)


def _read(path: str, loaded: Loaded) -> Picture:
    if path not in loaded.pictures:
        from PIL import Image

        content = regular(path).read_bytes()
        if loaded.source != "official":  # whose images are asked about as VLMEvalKit shows them, whatever they are
            image_state(io.BytesIO(content), Path(path).name)
        with Image.open(io.BytesIO(content)) as image:
            image.load()
            picture = Picture(hashlib.sha256(content).hexdigest(), *image.size)
        check_shape(image.width, image.height, Path(path).name)
        loaded.pictures[path] = picture
    return loaded.pictures[path]


def questions_digest(questions: Iterable[AskedRow]) -> str:
    """Of everything a model is shown: indices, words and pixels."""
    total = hashlib.sha256()
    for question in questions:
        words = [item["value"] for item in question.message if item["type"] == "text"]
        total.update(repr((question.index, words, [picture.digest for picture in question.images])).encode())
    return total.hexdigest()


def keep_whole_units(loaded: Loaded, questions: Sequence[AskedRow], faults: Iterable[str]) -> list[AskedRow]:
    """Leave out rows whose score counts only together with a row that is not asked.

    MME scores the two questions about an image together. MMBench counts a question as right only when it is
    answered with its options in every order; where one of them is bad (`faults`: their indices), the others go too.
    """
    frame = loaded.dataset.data
    name = loaded.dataset.dataset_name
    if name == "MME":
        columns = (frame[column] for column in ("index", "category", "image_path"))
        image = {str(index): (category, path) for index, category, path in zip(*columns, strict=True)}
        asked = Counter(image[question.index] for question in questions)
        return [question for question in questions if asked[image[question.index]] == 2]
    if "mmbench" in name.lower():
        broken = {int(index) % CIRCULAR_STEP for index in faults if index.isdecimal()}
        return [question for question in questions if int(question.index) % CIRCULAR_STEP not in broken]
    return list(questions)


_READ_WHOLE = 32 * 2**20
"""Files of a checkpoint up to this many bytes count by content; larger ones, weights, by size and time."""
_MATTER = (
    "*.safetensors", "*.bin", "*.py", "*config.json", "*chat_template*", "tokenizer*", "vocab.json", "merges.txt",
    "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip


class Journal:
    """The answers to one benchmark under one fingerprint: lines of JSON, one file per process."""

    def __init__(self, folder: Path, fingerprint: Mapping[str, Any], rank: int = 0) -> None:
        """Open (or begin) the journal of `fingerprint` below `folder`."""
        text = json.dumps(fingerprint, indent=2, sort_keys=True, ensure_ascii=False)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:12]
        self.folder.mkdir(parents=True, exist_ok=True)
        if rank == 0 and not (self.folder / "fingerprint.json").is_file():
            write_text(self.folder / "fingerprint.json", text + "\n")
        self._own = RowLog(self.folder / f"answers-{rank}.jsonl", key="index")

    def _rows(self) -> Iterator[Row]:
        """The finished answers, of this and of earlier runs and of the other processes."""
        for path in sorted(self.folder.glob("answers-*.jsonl")):
            for row, _ in log_lines(path):
                if row and isinstance(row.get("index"), str) and isinstance(row.get("answer"), str):
                    yield row

    def read(self) -> dict[str, str]:
        """Return all finished answers by index."""
        return {row["index"]: row["answer"] for row in self._rows()}

    def cut(self) -> set[str]:
        """Return the indices of the finished answers that the limit of tokens cut; earlier versions noted none."""
        last = {row["index"]: row.get("cut") for row in self._rows()}
        return {index for index, was_cut in last.items() if was_cut}

    def append(self, index: str, answer: str, *, cut: bool = False) -> None:
        """Add a finished answer, and whether the limit of tokens cut it."""
        self._own.append([{"index": index, "answer": answer} | ({"cut": True} if cut else {})])


def checkpoint_identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return what tells one checkpoint from another: the files that an answer depends on, small ones by content."""
    folders = {"base": checkpoint.base, "adapter": checkpoint.adapter}
    return {
        role: {path.name: _identity(path) for path in sorted({p for m in _MATTER for p in folder.glob(m)})}
        for role, folder in folders.items()
        if folder
    }


def _identity(path: Path) -> str:
    told = path.stat()
    if told.st_size > _READ_WHOLE:
        return f"{told.st_size} bytes, modified {told.st_mtime_ns}"
    return file_digest(path)[:16]


_PATIENCE = timedelta(days=7)
"""How long one process waits for another to finish its rows."""


class Ranks:
    """This process among the others; alone without torchrun."""

    def __init__(self) -> None:
        """Join the group that torchrun's environment describes."""
        self.rank = int(os.environ.get("RANK", 0))
        self.world = int(os.environ.get("WORLD_SIZE", 1))
        self._group: Any = None
        if self.world > 1:
            self._group = importlib.import_module("torch.distributed")
            if not self._group.is_initialized():
                self._group.init_process_group("gloo", timeout=_PATIENCE)  # carries no tensors, needs no GPU

    @property
    def first(self) -> bool:
        """Whether this process reports and scores."""
        return self.rank == 0

    def say(self, text: str) -> None:
        """Tell the user something, once."""
        if self.first:
            print(text, file=sys.stderr)

    def wait(self) -> None:
        """Wait until every process has come this far."""
        if self._group:
            self._group.barrier()

    def leave(self) -> None:
        """Leave the group."""
        if self._group:
            self._group.destroy_process_group()


def is_first_process() -> bool:
    """Tell whether this process is the one that reports, with torchrun or without."""
    return int(os.environ.get("RANK", 0)) == 0


def progress_bar(title: str, total: int, *, done: int = 0, shown: bool = True) -> "Bar":
    """Return a bar over rows of which `done` were finished before."""
    every = 0.2 if sys.stderr.isatty() else 30.0
    return tqdm(total=total, initial=done, desc=title, unit="row", mininterval=every, disable=not shown)
