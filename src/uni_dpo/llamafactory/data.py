"""How scores travel: from a file's columns, through LlamaFactory's pipeline, into the batch.

Every step passes stock runs through unchanged; it acts only where the run needs scores (`RunContext`).
"""

import copy
import math
from collections import defaultdict
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
from llamafactory.data.processor import PairwiseDatasetProcessor
from torch import Tensor

from uni_dpo.data.checks.table import training_table
from uni_dpo.data.dataset_info import Columns, DatasetEntry, Tags
from uni_dpo.data.images import image_paths
from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory.run_context import current_run

SCORES = ("score_chosen", "score_rejected")
MEDIA = ("images", "videos", "audios")
_upstream_load_single_dataset = loader._load_single_dataset
_upstream_align_dataset = loader.align_dataset
_upstream_get_dataset_converter = converter.get_dataset_converter


@dataclass(repr=False)
class ScoredDatasetAttr(DatasetAttr):
    """A dataset's description that also knows which columns hold the scores."""

    score_chosen: str = "score_chosen"
    score_rejected: str = "score_rejected"
    source: str = ""
    """What the dataset is called where `dataset_name` is the table that stands for it."""

    def __repr__(self) -> str:
        return self.source or self.dataset_name

    def join(self, attr: dict[str, Any]) -> None:
        """Take over an entry of `dataset_info.json`."""
        super().join(attr)
        for score in SCORES:
            setattr(self, score, attr.get("columns", {}).get(score, score))


@dataclass
class ScoredConverter:
    """Any LlamaFactory converter, with the scores and the row's place beside what it gives."""

    converter: DatasetConverter

    def __call__(self, example: dict[str, Any]) -> dict[str, Any]:
        """Convert one example; its scores become floats.

        Raises:
            UniDPOError: a score is missing or is no finite number.
        """
        attr = self.converter.dataset_attr
        source = f"{attr}, row {example['_row']}"
        scores = {f"_{score}": _finite(example, getattr(attr, score), source) for score in SCORES}
        typed = {name: None for name in MEDIA if f"_{name}" in example}
        return {**self.converter(example), **scores, **typed, "_source": source}


def _finite(example: dict[str, Any], column: str, source: str) -> float:
    value = example.get(column)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise UniDPOError(
            f"{source}, {column}: expected a finite number, found {value!r}. pref_loss: uni_dpo needs both scores of "
            'every pair; if they stand in other columns, name them in dataset_info.json ("columns": '
            '{"score_chosen": …, "score_rejected": …})'
        )
    return float(value)


def get_dataset_converter(name: str, dataset_attr: DatasetAttr, data_args: Any) -> Any:
    """LlamaFactory's converter of that name, wrapped where the loss needs scores."""
    found = _upstream_get_dataset_converter(name, dataset_attr, data_args)
    return ScoredConverter(found) if current_run().needs_scores else found


def load_single_dataset(dataset_attr: DatasetAttr, model_args: Any, data_args: Any, training_args: Any) -> Any:
    """LlamaFactory's loading; where the loss needs scores, local pairs come as a table of checked rows."""
    pairs = current_run().needs_scores and dataset_attr.load_from == "file" and dataset_attr.ranking
    if pairs and not dataset_attr.videos and not dataset_attr.audios:
        entry = entry_of(dataset_attr, data_args.dataset_dir)
        folder = Path(model_args.cache_dir or HF_DATASETS_CACHE) / "uni_dpo"
        limit = data_args.max_samples if dataset_attr.num_samples is None else None
        table = training_table(entry, folder, image_paths(*media_places(data_args), entry.beside), limit)
        dataset_attr = replace(dataset_attr, dataset_name=str(table.absolute()), source=dataset_attr.dataset_name)
    return _upstream_load_single_dataset(dataset_attr, model_args, data_args, training_args)


def entry_of(attr: DatasetAttr, folder: str) -> DatasetEntry:
    """LlamaFactory's description of a local dataset as ours."""
    columns = {field.name: getattr(attr, field.name) for field in fields(Columns)}
    tags = {field.name: getattr(attr, field.name) for field in fields(Tags)}
    path = Path(folder) / attr.dataset_name
    return DatasetEntry(attr.dataset_name, path, None, attr.formatting, attr.ranking, Columns(**columns), Tags(**tags))


def media_places(data_args: Any) -> tuple[str, str | None]:
    """Where image paths start, and the folder that they must stay in, if any.

    LlamaFactory fills `media_dir` with `dataset_dir`; only one that the user gave is a root to stay in.
    """
    media = data_args.media_dir or data_args.dataset_dir
    return media, media if media != data_args.dataset_dir else None


def align_dataset(dataset: Any, dataset_attr: DatasetAttr, data_args: Any, training_args: Any) -> Any:
    """LlamaFactory's alignment; where the loss needs scores, rows are numbered first, so that faults can name them."""
    if current_run().needs_scores:
        names = [name for medium in MEDIA for name in (medium, f"_{medium}") if name not in dataset.column_names]
        features = None
        if getattr(dataset_attr, "source", ""):
            # A map guesses types from its first thousand rows, of which none may have an image.
            texts = dict.fromkeys(names, Sequence(Value("string")))
            features = Features({**dataset.features, **texts, "_row": Value("int64")})
        empty = dict.fromkeys(names if features else ())
        dataset = dataset.map(lambda _, row: {**empty, "_row": row}, with_indices=True, features=features)
    return _upstream_align_dataset(dataset, dataset_attr, data_args, training_args)


class ScoredPairwiseProcessor(PairwiseDatasetProcessor):
    """LlamaFactory's pairwise tokenization, keeping the scores and noting what `cutoff_len` cuts from an image."""

    def preprocess_dataset(self, examples: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """Tokenize a batch of aligned examples; rows that upstream drops lose their scores with them."""
        if "_score_chosen" not in examples:
            return super().preprocess_dataset(examples)
        inputs: dict[str, list[Any]] = defaultdict(list)
        for index in range(len(examples["_prompt"])):
            example = {name: column[index : index + 1] for name, column in examples.items()}
            encoded = super().preprocess_dataset(example)
            if not encoded:
                continue
            for name, values in encoded.items():
                inputs[name].extend(values)
            for score in SCORES:
                inputs[score].extend(example[f"_{score}"])
            inputs["fault"].append(self._cut_media(example, encoded))
        return inputs

    def _cut_media(self, example: dict[str, list[Any]], encoded: dict[str, list[Any]]) -> str:
        chosen, rejected = encoded["chosen_input_ids"][0], encoded["rejected_input_ids"][0]
        if max(len(chosen), len(rejected)) < self.data_args.cutoff_len or not self._media_tokens():
            return ""
        unlimited = copy.copy(self.data_args)
        unlimited.cutoff_len = 2**30
        whole = PairwiseDatasetProcessor.preprocess_dataset(replace(self, data_args=unlimited), example)
        kept, needed = self._count_media(chosen), self._count_media(whole["chosen_input_ids"][0])
        if kept == needed:
            return ""
        length = max(len(whole["chosen_input_ids"][0]), len(whole["rejected_input_ids"][0]))
        return (
            f"{example['_source'][0]}: cutoff_len {self.data_args.cutoff_len} keeps {kept} of {needed} image tokens; "
            f"the pair is {length} tokens long"
        )

    def _media_tokens(self) -> set[int]:
        plugin = self.template.mm_plugin
        tokens = (plugin.image_token, plugin.video_token, plugin.audio_token)
        return {self.tokenizer.convert_tokens_to_ids(token) for token in tokens if token}

    def _count_media(self, input_ids: list[int]) -> int:
        media = self._media_tokens()
        return sum(token in media for token in input_ids)


@dataclass
class ScoredPairCollator(PairwiseDataCollatorWithPadding):
    """LlamaFactory's pairwise batch of n pairs in 2n rows, with `scores` of shape (2n,) where the features carry them.

    `scores` holds the bits of float32 numbers as int32, row by row like `input_ids`: DeepSpeed casts
    floating-point inputs to its own dtype, and a score of 3.14 is not the same number in bf16. The trainer
    takes it out again before the model sees the batch.
    """

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate features of `ScoredPairwiseProcessor` or of a stock run.

        Raises:
            UniDPOError: a streamed row lost image tokens to `cutoff_len`.
        """
        scores = self.scores(features)
        return {**super().__call__(features), **scores}

    def rows(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate rows of `input_ids`, `attention_mask`, `labels`, `images`, `videos` and `audios`, one row each."""
        return MultiModalDataCollatorForSeq2Seq.__call__(self, rows)

    def scores(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """The key `scores` of a batch of these features, or nothing where they carry none."""
        for feature in features:
            if feature.get("fault"):
                raise UniDPOError(cut_media_message([feature["fault"]]))
        scores = [feature[score] for score in SCORES for feature in features if score in feature]
        return {"scores": torch.tensor(scores, dtype=torch.float32).view(torch.int32)} if scores else {}


def take_scores(batch: Any) -> tuple[Tensor, Tensor]:
    """Remove the scores from a batch and return those of the chosen and of the rejected answers, float32 (n,) each."""
    chosen, rejected = batch.pop("scores").view(torch.float32).chunk(2)
    return chosen, rejected


def check_tokenized(dataset: Any) -> None:
    """Refuse a tokenized dataset that cannot train Uni-DPO.

    Args:
        dataset: a `datasets.Dataset`, an iterable one (whose rows the collator checks), or None.

    Raises:
        UniDPOError: it was tokenized without scores, or `cutoff_len` cut image tokens.
    """
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        return
    if "fault" not in columns:
        raise UniDPOError(
            "the data under tokenized_path has no scores: it was tokenized for another loss. "
            "Name another tokenized_path, or delete that folder, and tokenize with pref_loss: uni_dpo"
        )
    if hasattr(dataset, "select_columns") and hasattr(dataset, "__len__"):
        faults = [fault for fault in dataset["fault"] if fault]
        if faults:
            raise UniDPOError(cut_media_message(faults))


def cut_media_message(faults: list[str]) -> str:
    """Say which rows lose image tokens, how many they are, and what to do."""
    shown = "\n".join(f"  {fault}" for fault in faults[:20])
    return (
        f"cutoff_len cuts image tokens from {len(faults)} pairs, which would stop the training midway:\n{shown}\n"
        "raise cutoff_len, or lower image_max_pixels"
    )
