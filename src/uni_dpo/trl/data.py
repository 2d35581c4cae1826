"""Score columns and images of a dataset: what is at fault, and how they come into a batch."""

import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

import datasets
import PIL.Image
import torch

from uni_dpo.data.columns import TEXT_COLUMNS, VIDEO_COLUMNS, is_empty
from uni_dpo.data.image_state import BrokenImageError, OddImages, check_shape, oddity
from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.writing import KEY

logger = logging.getLogger(f"transformers.{__name__}")  # below transformers', which shows it

SCORES = ("score_chosen", "score_rejected")
"""The scores' names in a batch, whatever their columns are called."""
QUESTION_PARTS = ("system", "history", "input")
"""Columns of LlamaFactory's layouts that belong to the question, and that TRL does not know."""


def as_messages(dataset: Any) -> Any:
    """Give rows of `image` or `images, question, chosen, rejected` TRL's columns; any other dataset stays as it is.

    VQA-RAD's pairs come so. The images stand before the question.
    """
    columns = set(dataset.column_names or ())
    if "prompt" in columns or not {"question", "chosen", "rejected"} <= columns:
        return dataset

    def turn(row: Mapping[str, Any]) -> dict[str, Any]:
        images = [row["image"]] if row.get("image") is not None else row.get("images") or []
        shown = [{"type": "image", "text": None}] * len(images)
        said = {
            name: [{"role": "assistant", "content": [{"type": "text", "text": row[name]}]}]
            for name in ("chosen", "rejected")
        }
        asked = [{"role": "user", "content": [*shown, {"type": "text", "text": row["question"]}]}]
        return {"prompt": asked, **said} | ({"images": images} if "image" in columns else {})

    features = dict(dataset.features)
    parts = datasets.List({"type": datasets.Value("string"), "text": datasets.Value("string")})
    messages = datasets.List({"role": datasets.Value("string"), "content": parts})
    made = {"prompt": messages, "chosen": messages, "rejected": messages}
    if "image" in columns:
        made["images"] = datasets.List(features.pop("image"))
    left = {name: kind for name, kind in features.items() if name not in ("question", "chosen", "rejected")}
    gone = [name for name in ("question", "image") if name in columns]
    return dataset.map(turn, remove_columns=gone, features=datasets.Features({**left, **made}))


def with_image_lists(dataset: Any) -> Any:
    """Give rows of one `image`, or of a path under `images`, a list of `images`: TRL 0.24 reads nothing else."""
    kinds = dict(dataset.features or {})
    column = "images" if "images" in kinds else "image"
    kind = kinds.pop(column, None)
    if not isinstance(kind, datasets.Image | datasets.Value | dict):
        return dataset
    listed = datasets.Features({**kinds, "images": datasets.List(kind)})
    if isinstance(kind, datasets.Image):
        dataset = dataset.cast_column(column, datasets.Image(decode=False))

    def of(row: Mapping[str, Any]) -> dict[str, Any]:
        return {"images": [] if is_empty(row[column]) else [row[column]]}

    return dataset.map(of, remove_columns=[column], features=listed)


def check_scores(dataset: Any, columns: tuple[str, str], name: str = "train") -> None:
    """Refuse a dataset whose scores are missing or are no finite numbers.

    Of an `IterableDataset` only the columns are looked at, where it knows them.

    Raises:
        UniDPOError: names the first row at fault, and how many there are.
    """
    present = dataset.column_names
    if "rejected_images" in (present or ()):
        raise UniDPOError(
            f"the {name} dataset has a column 'rejected_images': TRL shows both answers the same images. Train with "
            "`uni-dpo train`, or remove the column"
        )
    missing = [column for column in columns if present is not None and column not in present]
    if missing:
        raise UniDPOError(
            f"the {name} dataset has no column {missing[0]!r}; it has {', '.join(present)}. Name the columns of the "
            "scores with score_chosen_column and score_rejected_column, or choose another loss_type"
        )
    if not hasattr(dataset, "num_rows"):
        return
    for column in columns:
        faults = [(row, value) for row, value in enumerate(dataset[column]) if not is_score(value)]
        if faults:
            row, value = faults[0]
            raise UniDPOError(
                f"the {name} dataset, row {row}, {column}: {value!r} is no finite number; {len(faults):,} of "
                f"{dataset.num_rows:,} rows are at fault. Correct or remove them"
            )


def check_pairs(dataset: Any, name: str = "train") -> None:
    """Refuse a dataset of which TRL would leave out the question, or a part of it, or that lacks a prompt or an answer.

    Without `prompt`, TRL takes what both answers begin with for the question.

    Args:
        dataset: a `datasets.Dataset`; of a stream only the first row is looked at.
        name: what the dataset is called in the message.

    Raises:
        UniDPOError: names the column, or the row.
    """
    columns = dataset.column_names or ()
    chosen = first_chosen(dataset)
    begins_with_it = isinstance(chosen, list) and chosen and chosen[0].get("role") != "assistant"
    asked = [column for column in TEXT_COLUMNS if column in columns]
    if asked and "prompt" not in columns and not begins_with_it:
        raise UniDPOError(
            f"the {name} dataset has no column 'prompt', and TRL would not read {asked[0]!r}: `uni-dpo data convert "
            "FILE FOLDER --to trl` makes what it reads"
        )
    if isinstance(chosen, Mapping):
        raise UniDPOError(
            f"the {name} dataset, row 0, chosen: holds one message, and TRL reads a text or a list of messages: "
            "`uni-dpo data convert FILE FOLDER --format auto --to trl` makes one"
        )
    read = [column for column in ("prompt", "chosen", "rejected") if column in columns]
    for column in read if hasattr(dataset, "num_rows") else ():
        empty = next((row for row, value in enumerate(dataset[column]) if is_empty(value)), None)
        if empty is not None:
            raise UniDPOError(f"the {name} dataset, row {empty}, {column}: is empty; write it, or remove the row")
    parts = [column for column in QUESTION_PARTS if column in columns]
    for column in parts if hasattr(dataset, "num_rows") else ():
        filled = next((row for row, value in enumerate(dataset[column]) if not is_empty(value)), None)
        if filled is not None:
            raise UniDPOError(
                f"the {name} dataset, row {filled}, {column}: TRL would not read it: `uni-dpo data convert FILE FOLDER "
                "--format auto --to trl` writes it into the messages; or remove the column"
            )


def first_chosen(dataset: Any) -> Any:
    """Return the chosen answer of the first row, of a stream too; no image is opened, which may be broken."""
    if dataset.column_names is not None:
        dataset = dataset.select_columns([name for name in dataset.column_names if name == "chosen"])
    first: Mapping[str, Any] = next(iter(dataset), {})
    return first.get("chosen")


def check_places(dataset: Any, image_token: str | None, name: str = "train", *, added: bool = False) -> None:
    """Refuse a row whose prompt has not one place for each of its images.

    Args:
        dataset: a `datasets.Dataset`; the rows of a stream are seen when they come.
        image_token: what stands for an image in a text; None for a model without images.
        name: what the dataset is called in the message.
        added: whether TRL itself puts the images before messages whose contents are texts.

    Raises:
        UniDPOError: names the row.
    """
    if image_token is None or not hasattr(dataset, "num_rows") or not {"prompt", "images"} <= {*dataset.column_names}:
        return
    for row, example in enumerate(_undecoded(dataset).select_columns(["prompt", "images"])):
        prompt, count = example["prompt"], len(example["images"] or ())
        contents = [prompt] if isinstance(prompt, str) else [turn.get("content") for turn in prompt]
        if added and not isinstance(prompt, str) and any(isinstance(content, str) for content in contents):
            continue
        places = sum(_places(content, image_token) for content in contents)
        if places != count:
            raise UniDPOError(
                f"the {name} dataset, row {row}: its prompt has {places} places for images, `images` holds {count}: "
                "give each image a part of type 'image', as `uni-dpo data convert FILE FOLDER --to trl` does"
            )


def _places(content: Any, image_token: str) -> int:
    parts = [content] if isinstance(content, str) else content or ()
    texts = (part if isinstance(part, str) else part.get("text") or "" for part in parts)
    images = sum(not isinstance(part, str) and part.get("type") == "image" for part in parts)
    return images + sum(text.count(image_token) for text in texts)


def _undecoded(dataset: Any) -> Any:
    """The dataset with its images as they are stored."""
    if isinstance(getattr(dataset.features["images"], "feature", None), datasets.Image):
        return dataset.cast_column("images", datasets.Sequence(datasets.Image(decode=False)))
    return dataset


def refuse_videos(dataset: Any, name: str = "train") -> None:
    """Refuse a dataset with videos, of which TRL shows a model none."""
    for column in {*VIDEO_COLUMNS}.intersection(dataset.column_names or ()):
        if not hasattr(dataset, "num_rows") or any(not is_empty(value) for value in dataset[column]):
            raise UniDPOError(
                f"the {name} dataset has videos in its column {column!r}, and TRL trains on texts and images: train "
                "with `uni-dpo train`, or remove the column"
            )


def check_images(dataset: Any, name: str = "train") -> None:
    """Refuse a dataset with an image that cannot be opened or that no processor takes; only their heads are read.

    Images that look different elsewhere (`data.odd_images`) are a warning. Rows of a stream are seen when they come.

    Raises:
        UniDPOError: names the row and the image.
    """
    if not hasattr(dataset, "num_rows") or "images" not in dataset.column_names:
        return
    odd = OddImages()
    for row, example in enumerate(_undecoded(dataset.select_columns("images"))):
        for at, image in enumerate(example["images"] or ()):
            odd.add(_check_image(image, f"the {name} dataset, row {row}, image {at + 1}"), f"row {row}, image {at + 1}")
    for line in odd.warnings():
        logger.warning("the %s dataset: %s", name, line)


def _check_image(image: Any, name: str) -> str:
    """Refuse an image, or return its oddity."""
    path, content = (image.get("path"), image.get("bytes")) if isinstance(image, Mapping) else (image, None)
    try:
        with PIL.Image.open(io.BytesIO(content) if content else str(path)) as opened:
            width, height = opened.size
            odd = oddity(opened)
        check_shape(width, height, name)
    except BrokenImageError as error:
        raise UniDPOError(f"{error}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise UniDPOError(f"{name} cannot be read: {error}; fix or remove the row") from None
    return odd


@dataclass
class ScoredPairs:
    """A collator of pairs, and the scores and keys of the rows beside its batch.

    Args:
        collate: makes the batch of rows.
        columns: the dataset's columns with the scores; None for a loss without scores.
    """

    collate: Callable[[list[Mapping[str, Any]]], Mapping[str, Any]]
    columns: tuple[str, str] | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows, in the form that `collate` takes them; scores are (pairs,) float32, keys (pairs,) int64.

        Raises:
            UniDPOError: a score is no finite number.
        """
        batch = dict(self.collate(list(examples)))
        for name, column in zip(SCORES, self.columns or (), strict=False):
            values = [example[column] for example in examples]
            if not all(map(is_score, values)):  # rows of a stream come unchecked
                raise UniDPOError(f"{column}: {values} are not all finite numbers; fix or remove these rows")
            batch[name] = torch.tensor(values, dtype=torch.float32)
        if examples and KEY in examples[0]:
            batch[KEY] = torch.tensor([example[KEY] for example in examples])
        return batch


def is_score(value: object) -> TypeGuard[float]:
    """Tell whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def opened(image: Any) -> Any:
    """Return an image of a dataset as the processor takes it: decoded already, or a path."""
    if not isinstance(image, str | Path):
        return image.convert("RGB")
    try:
        with PIL.Image.open(image) as file:
            return file.convert("RGB")
    except OSError as error:
        raise UniDPOError(f"image {image} cannot be read: {error}") from error


def without_absent_images(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a model's inputs without those of images where none of the rows has one."""
    blind = "pixel_values" in inputs and not len(inputs["pixel_values"])
    dropped = ("pixel_values", "image_grid_thw", "image_sizes") if blind else ()
    return {name: value for name, value in inputs.items() if name not in dropped}
