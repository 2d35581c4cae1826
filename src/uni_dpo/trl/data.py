"""Score columns and images on their way from a dataset to a batch."""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import PIL.Image
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl.trainer.dpo_trainer import DataCollatorForPreference

from uni_dpo.data.images import BrokenImageError, check_shape
from uni_dpo.errors import UniDPOError

SCORES = ("score_chosen", "score_rejected")
"""The scores' names in a batch, whatever their columns are called."""

PASSED_ON = ("ref_chosen_logps", "ref_rejected_logps")
"""Columns that TRL adds when it computes the reference's log-probabilities beforehand."""


def check_scores(dataset: Any, columns: tuple[str, str], name: str = "train") -> None:
    """Refuse a dataset whose scores are missing or are no finite numbers.

    Args:
        dataset: a `datasets.Dataset`; of an `IterableDataset` only the columns are looked at, where it knows them.
        columns: the two columns that hold the scores.
        name: what the dataset is called in the message.

    Raises:
        UniDPOError: names the first row at fault, and how many there are.
    """
    present = dataset.column_names
    missing = [column for column in columns if present is not None and column not in present]
    if missing:
        raise UniDPOError(
            f"the {name} dataset has no column {missing[0]!r}; it has {', '.join(present)}. Name the columns of the "
            "scores with score_chosen_column and score_rejected_column, or choose another loss_type"
        )
    if not hasattr(dataset, "num_rows"):
        return
    for column in columns:
        faults = [(row, value) for row, value in enumerate(dataset[column]) if not _is_score(value)]
        if faults:
            row, value = faults[0]
            raise UniDPOError(
                f"the {name} dataset, row {row}, {column}: {value!r} is no finite number; {len(faults):,} of "
                f"{dataset.num_rows:,} rows are at fault. Mend or remove them"
            )


def check_images(dataset: Any, name: str = "train") -> None:
    """Refuse a dataset with an image that cannot be opened or that no processor takes; only their heads are read.

    Args:
        dataset: a `datasets.Dataset`; the rows of a stream are seen when they come.
        name: what the dataset is called in the message.

    Raises:
        UniDPOError: names the row and the image.
    """
    if not hasattr(dataset, "num_rows") or "images" not in dataset.column_names:
        return
    images = dataset.select_columns("images")
    if isinstance(getattr(images.features["images"], "feature", None), datasets.Image):
        images = images.cast_column("images", datasets.Sequence(datasets.Image(decode=False)))
    for row, example in enumerate(images):
        for at, image in enumerate(example["images"] or ()):
            _check_image(image, f"the {name} dataset, row {row}, image {at + 1}")


def _check_image(image: Any, name: str) -> None:
    path, content = (image.get("path"), image.get("bytes")) if isinstance(image, Mapping) else (image, None)
    try:
        with PIL.Image.open(io.BytesIO(content) if content else str(path)) as opened:
            width, height = opened.size
        check_shape(width, height, name)
    except BrokenImageError as error:
        raise UniDPOError(f"{error}") from None
    except (OSError, ValueError, AttributeError) as error:
        raise UniDPOError(f"{name} cannot be read: {error}; fix or remove the row") from None


@dataclass
class ScoredTextPairCollator:
    """TRL's collator for texts, and the scores beside its batch.

    Args:
        pad_token_id: fills up token ids.
        columns: the dataset's columns with the scores; None for a loss without scores.
    """

    pad_token_id: int
    columns: tuple[str, str] | None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows that TRL has tokenized."""
        batch = DataCollatorForPreference(pad_token_id=self.pad_token_id)(list(examples))
        return {**batch, **_scores(examples, self.columns)}


@dataclass
class ScoredVisionPairCollator:
    """Rows with images to TRL's batch: prompt and images through the model's own processor.

    Args:
        processor: the model's; a prompt holds its placeholder once per image.
        pad_token_id: fills up token ids.
        columns: the dataset's columns with the scores; None for a loss without scores.
        max_length: tokens of prompt and answer that are kept; a prompt must fit, for none of its images can be cut.
    """

    processor: Any
    pad_token_id: int
    columns: tuple[str, str] | None
    max_length: int | None = None

    def __call__(self, examples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Collate rows of `prompt`, `images`, `chosen_input_ids`, `rejected_input_ids`."""
        images = [_opened(image) for example in examples for image in example.get("images") or ()]
        inputs = self.processor(
            text=[example["prompt"] for example in examples],
            **({"images": images} if images else {}),
            add_special_tokens=False,
            padding=True,
            padding_side="left",
            return_tensors="pt",
        )
        batch = {
            "prompt_input_ids": inputs.pop("input_ids"),
            "prompt_attention_mask": inputs.pop("attention_mask"),
        }
        # Told from the token ids again, once prompts and answers are joined.
        inputs.pop("mm_token_type_ids", None)
        longest = int(batch["prompt_attention_mask"].sum(1).max())
        if self.max_length is not None and longest >= self.max_length:
            raise UniDPOError(
                f"a prompt with its images has {longest} tokens, and max_length is {self.max_length}: raise it, set it "
                "to None, or make the images smaller"
            )
        for side in ("chosen", "rejected"):
            answers = [torch.tensor(example[f"{side}_input_ids"]) for example in examples]
            batch[f"{side}_input_ids"] = pad_sequence(answers, batch_first=True, padding_value=self.pad_token_id)
            batch[f"{side}_attention_mask"] = pad_sequence([torch.ones_like(a) for a in answers], batch_first=True)
        for name in PASSED_ON:
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return {**batch, **inputs, **_scores(examples, self.columns)}


def tokenize_answers(
    features: Mapping[str, Any],
    processing_class: Any,
    max_prompt_length: int | None = None,
    max_completion_length: int | None = None,
    add_special_tokens: bool = True,
) -> dict[str, list[int]]:
    """Tokenize both answers of a row with images, ended as TRL ends them; the prompt waits for the collator.

    Args:
        features: a row with `chosen` and `rejected`.
        processing_class: the model's processor.
        max_prompt_length: not used: a prompt with images is not cut.
        max_completion_length: tokens of an answer that are kept.
        add_special_tokens: not used; the chat template has written them.
    """
    tokenizer = processing_class.tokenizer
    answers = {}
    for side in ("chosen", "rejected"):
        ids = [*tokenizer(features[side], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        answers[f"{side}_input_ids"] = ids[:max_completion_length]
    return answers


def _scores(examples: Sequence[Mapping[str, Any]], columns: tuple[str, str] | None) -> dict[str, Tensor]:
    if columns is None:
        return {}
    scores = {}
    for name, column in zip(SCORES, columns, strict=True):
        values = [example[column] for example in examples]
        if not all(map(_is_score, values)):  # rows of a stream come unchecked
            raise UniDPOError(f"{column}: {values} are not all finite numbers; fix or remove these rows")
        scores[name] = torch.tensor(values, dtype=torch.float32)
    return scores


def _is_score(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _opened(image: Any) -> Any:
    """An image of a dataset as the processor takes it: decoded already, or a path."""
    if not isinstance(image, str | Path):
        return image.convert("RGB")
    from PIL import Image

    try:
        with Image.open(image) as opened:
            return opened.convert("RGB")
    except OSError as error:
        raise UniDPOError(f"image {image} cannot be read: {error}") from error
