"""How scores travel: from a file's columns, through LlamaFactory's pipeline, into the batch.

Every step passes stock runs through unchanged; it acts only where the run needs scores (`RunContext`).
"""

import math
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Features, Sequence, Value
from datasets.config import HF_DATASETS_CACHE
from llamafactory.data import converter, loader
from llamafactory.data.collator import MultiModalDataCollatorForSeq2Seq, PairwiseDataCollatorWithPadding
from llamafactory.data.converter import DatasetConverter
from llamafactory.data.parser import DatasetAttr
from torch import Tensor

from uni_dpo.data.checks.preflight import training_table
from uni_dpo.data.dataset_info import SCORE_ROLES, Columns, DatasetEntry, Tags
from uni_dpo.data.images import image_paths
from uni_dpo.data.ranking import answer_scores, answer_text
from uni_dpo.errors import UniDPOError
from uni_dpo.ledger.writing import KEY
from uni_dpo.llamafactory.question_pairs import MEDIA, REJECTED_IMAGES, as_bits, cut_media_message
from uni_dpo.llamafactory.run_context import current_run

SCORES = ("score_chosen", "score_rejected")
KEYS = "pair_keys"
CARRIED = ("scores", KEYS)
"""Keys of a batch that are no inputs of the model; the trainer takes them out."""
ANSWERS = ("_better", "_worse")
"""The columns under which LlamaFactory's converters are handed two of several answers."""
_upstream_load_single_dataset = loader._load_single_dataset
_upstream_align_dataset = loader.align_dataset
_upstream_get_dataset_converter = converter.get_dataset_converter


@dataclass(repr=False)
class ScoredDatasetAttr(DatasetAttr):
    """A dataset's description that also knows which columns hold the scores, and the ranked answers if any."""

    score_chosen: str = "score_chosen"
    score_rejected: str = "score_rejected"
    answers: str | None = None
    scores: str = "scores"
    rejected_images: str | None = None
    source: str = ""
    """What the dataset is called where `dataset_name` is the table that stands for it."""

    def __repr__(self) -> str:
        return self.source or self.dataset_name

    def join(self, attr: dict[str, Any]) -> None:
        """Take over an entry of `dataset_info.json`."""
        super().join(attr)
        columns = attr.get("columns", {})
        for role in SCORE_ROLES:
            setattr(self, role, columns.get(role, role))
        self.answers, self.rejected_images = columns.get("answers"), columns.get(REJECTED_IMAGES)


@dataclass
class ScoredConverter:
    """Any LlamaFactory converter, with the scores and the row's place beside what it gives.

    Attributes:
        converter: LlamaFactory's.
        needs_scores: whether the loss does; otherwise the ledger wants them, of pairs, and NaN stands for one that is
            missing or no number.
    """

    converter: DatasetConverter
    needs_scores: bool = True

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """Convert one example: all its answers in `_response`, their scores as floats in `_scores`.

        Raises:
            UniDPOError: a score that is needed is missing or is no finite number.
        """
        attr: Any = self.converter.dataset_attr
        source = f"{attr}, row {example['_row']}"
        if getattr(attr, "answers", None) is None:
            converted = self.converter(example)
            scores = [(column, example.get(column)) for column in (getattr(attr, score, score) for score in SCORES)]
        else:
            converted = self._ranked(example, attr)
            values = answer_scores(example, entry_of(attr, "").columns)
            scores = [(f"{attr.scores}[{at}]", value) for at, value in enumerate(values)]
        known: dict[str, Any] = {
            "_scores": [self._score(value, f"{source}, {column}") for column, value in scores],
            "_source": source,
            f"_{REJECTED_IMAGES}": rejected_images(self.converter, example),
        }
        if self.needs_scores:
            known["_ranked"] = attr.answers is not None
        typed = {name: None for name in (*MEDIA, REJECTED_IMAGES) if f"_{name}" in example}
        return {**converted, **typed, **known}

    def _score(self, value: Any, where: str) -> float:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if self.needs_scores and not (number and math.isfinite(value)):
            raise UniDPOError(
                f"{where}: expected a finite number, found {value!r}. pref_loss: uni_dpo needs the scores of "
                'every answer; if they stand in other columns, name them in dataset_info.json ("columns": '
                '{"score_chosen": …, "score_rejected": …}, or "scores" for ranked answers)'
            )
        return float(value) if number else math.nan

    def _ranked(self, example: dict[str, Any], attr: Any) -> dict[str, Any]:
        """What the converter makes of the first answer, and the others beside it."""
        texts = [answer_text(answer) for answer in example[attr.answers]]
        first: Any = texts[0] if texts else ""
        if attr.formatting != "alpaca":
            first = {attr.role_tag: attr.assistant_tag, attr.content_tag: first}
        converted = self.converter({**example, **dict.fromkeys(ANSWERS, first)})
        return {
            **converted,
            "_response": [{**role, "content": text} for role in converted["_response"][:1] for text in texts],
        }


def rejected_images(converter: DatasetConverter, example: dict[str, Any]) -> list[Any] | None:
    """Return what the rejected answer of an example sees in place of its images; None where it sees the same."""
    column = getattr(converter.dataset_attr, REJECTED_IMAGES, None)
    found: list[Any] | None = converter._find_medias(example.get(column) or None) if column else None
    return found


def _names_rows(attr: DatasetAttr) -> bool:
    """Whether the run wants of a dataset more than LlamaFactory's converters give."""
    run = current_run()
    return run.needs_scores or run.keeps_ledger or getattr(attr, REJECTED_IMAGES, None) is not None


def get_dataset_converter(name: str, dataset_attr: DatasetAttr, data_args: Any) -> Any:
    """Return LlamaFactory's converter of that name, wrapped where the run needs scores or keeps a ledger."""
    needs_scores = current_run().needs_scores
    if needs_scores and getattr(dataset_attr, "answers", None) is not None:
        dataset_attr = replace(dataset_attr, chosen=ANSWERS[0], rejected=ANSWERS[1])
    found = _upstream_get_dataset_converter(name, dataset_attr, data_args)
    return ScoredConverter(found, needs_scores) if _names_rows(dataset_attr) else found


def load_single_dataset(dataset_attr: DatasetAttr, model_args: Any, data_args: Any, training_args: Any) -> Any:
    """Return LlamaFactory's loading; where the loss needs scores, local pairs come as a table of checked rows.

    Raises:
        UniDPOError: ranked answers are to train another loss.
    """
    if getattr(dataset_attr, "answers", None) is not None and not current_run().needs_scores:
        raise UniDPOError(
            f"dataset {dataset_attr}: ranked answers train with pref_loss: uni_dpo only; for another loss make pairs "
            "of them: uni-dpo data convert --format llamafactory-ranked ANSWERS.jsonl PAIRS.jsonl"
        )
    if getattr(dataset_attr, REJECTED_IMAGES, None) is not None and current_run().unit == "samples":
        raise UniDPOError(
            f"dataset {dataset_attr}: rejected_images train with stage: dpo only; for another stage leave them out of "
            "its columns in dataset_info.json"
        )
    pairs = current_run().needs_scores and dataset_attr.load_from == "file" and dataset_attr.ranking
    if pairs and not dataset_attr.audios:
        entry = entry_of(dataset_attr, data_args.dataset_dir)
        folder = Path(model_args.cache_dir or HF_DATASETS_CACHE) / "uni_dpo"
        limit = data_args.max_samples if dataset_attr.num_samples is None else None
        table = training_table(entry, folder, image_paths(*media_places(data_args), entry.beside), limit)
        dataset_attr = replace(dataset_attr, dataset_name=str(table.absolute()), source=dataset_attr.dataset_name)
    return _upstream_load_single_dataset(dataset_attr, model_args, data_args, training_args)


def entry_of(attr: DatasetAttr, folder: str) -> DatasetEntry:
    """Return LlamaFactory's description of a local dataset as ours."""
    columns = {field.name: getattr(attr, field.name) for field in fields(Columns)}
    tags = {field.name: getattr(attr, field.name) for field in fields(Tags)}
    path = Path(folder) / attr.dataset_name
    return DatasetEntry(attr.dataset_name, path, None, attr.formatting, attr.ranking, Columns(**columns), Tags(**tags))


def media_places(data_args: Any) -> tuple[str, str | None]:
    """Tell where image paths start, and the folder that they must stay in, if any.

    LlamaFactory fills `media_dir` with `dataset_dir`; only one that the user gave is a root to stay in.
    """
    media = data_args.media_dir or data_args.dataset_dir
    return media, media if media != data_args.dataset_dir else None


def align_dataset(dataset: Any, dataset_attr: DatasetAttr, data_args: Any, training_args: Any) -> Any:
    """Return LlamaFactory's alignment.

    Where rows have to be named, in faults or in the ledger, they are numbered first.
    """
    if _names_rows(dataset_attr):
        media = (*MEDIA, REJECTED_IMAGES)
        names = [name for medium in media for name in (medium, f"_{medium}") if name not in dataset.column_names]
        features = None
        if getattr(dataset_attr, "source", ""):
            # A map guesses types from its first thousand rows, of which none may have an image.
            texts = dict.fromkeys(names, Sequence(Value("string")))
            if dataset_attr.videos in dataset.column_names:
                texts["_videos"] = dataset.features[dataset_attr.videos]
            features = Features({**dataset.features, **texts, "_row": Value("int64")})
        empty = dict.fromkeys(names if features else ())
        dataset = dataset.map(lambda _, row: {**empty, "_row": row}, with_indices=True, features=features)
    return _upstream_align_dataset(dataset, dataset_attr, data_args, training_args)


@dataclass
class ScoredPairCollator(PairwiseDataCollatorWithPadding):
    """LlamaFactory's pairwise batch of n pairs in 2n rows, with `scores` of shape (2n,) where the features carry them.

    `scores` are `as_bits`, row by row like `input_ids`. `pair_keys` of shape (2n,) holds twice what the ledger knows
    each pair by. The trainer takes both out again before the model sees the batch.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate features of `ScoredPairwiseProcessor` or of a stock run.

        Raises:
            UniDPOError: a streamed row lost image tokens to `cutoff_len`.
        """
        carried = self.carried(features)
        if not sees_apart(features):
            return {**super().__call__(features), **carried}
        rows = [_row(feature, side) for side in ("chosen", "rejected") for feature in features]
        return {**self.rows(rows), **carried}

    def rows(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows of `input_ids`, `attention_mask`, `labels`, `images`, `videos` and `audios`, one row each."""
        return MultiModalDataCollatorForSeq2Seq.__call__(self, rows)

    def carried(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Return what a batch holds beside the model's inputs: `CARRIED`, or nothing where the features carry none."""
        for feature in features:
            if feature.get("fault"):
                raise UniDPOError(cut_media_message([feature["fault"]]))
        scores = [feature[score] for score in SCORES for feature in features if score in feature]
        keys = [feature[KEY] for feature in features if KEY in feature]
        named = {KEYS: torch.tensor([*keys, *keys])} if keys else {}
        return {"scores": as_bits(scores), **named} if scores else named


def sees_apart(features: list[dict[str, Any]]) -> bool:
    """Tell whether the rejected answer of any pair sees other images than the chosen one."""
    return any(feature.get(REJECTED_IMAGES) for feature in features)


def _row(feature: dict[str, Any], side: str) -> dict[str, Any]:
    """One side of a pair, with the images that it sees."""
    row = {name: feature[f"{side}_{name}"] for name in ("input_ids", "attention_mask", "labels")}
    row |= {name: feature.get(name) for name in MEDIA}
    return row | ({"images": feature[REJECTED_IMAGES]} if side == "rejected" and feature[REJECTED_IMAGES] else {})


def take_keys(batch: Any) -> Tensor | None:
    """Remove from a batch what the ledger knows its pairs by, and return it, int64 (n,)."""
    return batch.pop(KEYS).chunk(2)[0] if KEYS in batch else None
