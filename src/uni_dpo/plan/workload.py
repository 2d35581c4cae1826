"""What a training asks of a model: its settings that matter to memory and time, and its data from a sample of the rows.

Settings have LlamaFactory's defaults; data are questions, pairs, tokens and images.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from statistics import fmean
from typing import Any

from uni_dpo.data.checks.lengths import MEDIA, chat_text, model_limits, video_limits
from uni_dpo.data.checks.rows import CheckedRow, RowChecker
from uni_dpo.data.dataset_info import DatasetEntry, read_entry
from uni_dpo.data.image_state import ImageLimits
from uni_dpo.data.images import ImageChecker, image_paths
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.ranking import PairChoice
from uni_dpo.data.tables.reading import iter_rows, source_files
from uni_dpo.data.videos import FRAME, VideoChecker, VideoLimits, has_decoder
from uni_dpo.errors import UniDPOError
from uni_dpo.plan.shapes import ModelShape, read_shape
from uni_dpo.settings.losses import compares, is_ours
from uni_dpo.settings.machine import is_true


@dataclass(frozen=True)
class PlannedRun:
    """The settings, by what they mean to a step; LlamaFactory has the same names for most of them."""

    model: ModelShape
    batch: int
    accumulation: int
    epochs: float
    max_steps: int
    full: bool
    lora_rank: int
    bf16: bool
    pure: bool
    quantized: int
    zero: int
    offload: bool
    optimizer: str
    checkpointing: bool
    tuned_vision: bool
    shared: bool
    grouped: bool
    reference: bool
    precomputed: bool
    images_kept: bool
    save_total_limit: int


def read_run(settings: Mapping[str, Any]) -> PlannedRun:
    """Return what a configuration says, with LlamaFactory's defaults for what it does not say.

    Raises:
        UniDPOError: a setting is out of range, or the model is not known.
    """
    kind = str(settings.get("finetuning_type", "lora"))
    if settings.get("stage") != "dpo" or kind not in ("full", "lora"):
        raise UniDPOError(
            f"a plan knows stage: dpo with finetuning_type: full or lora; here stage: {settings.get('stage')}, "
            f"finetuning_type: {kind}"
        )
    loss = settings.get("pref_loss", "sigmoid")
    forward = settings.get("pair_forward", "auto")
    zero, offload = _deepspeed(settings.get("deepspeed"))
    return PlannedRun(
        model=read_shape(str(settings.get("model_name_or_path", ""))),
        batch=_number(settings, "per_device_train_batch_size", 8, int),
        accumulation=_number(settings, "gradient_accumulation_steps", 1, int),
        epochs=_number(settings, "num_train_epochs", 3.0, float),
        max_steps=_number(settings, "max_steps", -1, int),
        full=kind == "full",
        lora_rank=_number(settings, "lora_rank", 8, int),
        bf16=is_true(settings.get("bf16")) or is_true(settings.get("fp16")) or is_true(settings.get("pure_bf16")),
        pure=is_true(settings.get("pure_bf16")),
        quantized=_number(settings, "quantization_bit", 0, int),
        zero=zero,
        offload=offload,
        optimizer=str(settings.get("optim", "adamw_torch")),
        checkpointing=not is_true(settings.get("disable_gradient_checkpointing")),
        tuned_vision=settings.get("freeze_vision_tower") is False,
        shared=forward == "shared_prefix" or (forward == "auto" and is_ours(loss)),
        grouped=is_true(settings.get("group_by_question")),
        reference=compares(loss),
        precomputed=is_true(settings.get("precompute_ref_log_probs")),
        images_kept=is_true(settings.get("keep_image_features")),
        save_total_limit=_number(settings, "save_total_limit", 0, int),
    )


def _deepspeed(value: Any) -> tuple[int, bool]:
    """The ZeRO stage of a DeepSpeed configuration, and whether the optimizer is kept in the machine's memory."""
    if not value:
        return 0, False
    try:
        path = Path(str(value))
        described = json.loads(path.read_text(encoding="utf-8") if path.is_file() else str(value))
        zero = described.get("zero_optimization", {})
        return int(zero.get("stage", 0)), zero.get("offload_optimizer", {}).get("device", "none") not in (None, "none")
    except (OSError, ValueError, AttributeError, TypeError):
        raise UniDPOError(f"deepspeed: {value} is no DeepSpeed configuration that can be read") from None


def _number(settings: Mapping[str, Any], name: str, default: Any, kind: Any) -> Any:
    value = settings.get(name)
    try:
        return default if value is None else kind(value)
    except (TypeError, ValueError):
        raise UniDPOError(f"{name}: {value!r} is no number") from None


LOOKED_AT = 500
"""Rows whose texts and images are measured; all are counted."""
CHARACTERS_A_TOKEN = 3.5
"""Where no tokenizer is at hand: of English; Chinese has fewer."""


@dataclass(frozen=True)
class Workload:
    """Means over the sample, in tokens; counts over the whole file.

    Attributes:
        questions: rows, or questions of ranked answers.
        pairs: pairs of all questions.
        answers: different answers per question.
        prompt: a prompt, image tokens included.
        image: image tokens of a prompt.
        answer: an answer.
        longest: prompt and answers of the longest question.
        images: different images in the whole file, about.
        counted: whether a tokenizer counted, rather than the number of characters.
    """

    questions: int
    pairs: int
    answers: float
    prompt: float
    image: float
    answer: float
    longest: float
    images: int
    counted: bool

    @property
    def pairs_of_a_question(self) -> float:
        """Pairs per question."""
        return self.pairs / max(1, self.questions)


def read_workload(settings: Mapping[str, Any], choice: PairChoice) -> Workload:
    """Return the data that a training configuration names.

    Args:
        settings: `dataset`, `dataset_dir`, `media_dir`, `model_name_or_path`, `cutoff_len`, `image_max_pixels` … of a
            training configuration.
        choice: which pairs of ranked answers count.

    Raises:
        UniDPOError: no dataset is named, or one is not on this machine or cannot be read.
    """
    named = settings.get("dataset")
    names = [name.strip() for name in named.split(",")] if isinstance(named, str) else list(named or [])
    if not names:
        raise UniDPOError("dataset: none is named; a plan needs the data that is to be trained on")
    folder = str(settings.get("dataset_dir", "data"))
    rows = 0
    sample: list[CheckedRow] = []
    for entry in (read_entry(name, folder) for name in names):
        if entry.path is None:
            raise UniDPOError(f"dataset: {entry.name} is at {entry.elsewhere}, not on this machine; download it first")
        limit = settings.get("max_samples")
        count = sum(1 for _ in islice(iter_rows(entry.path), limit))
        rows += entry.num_samples or count
        sample += _sampled(entry, folder, settings.get("media_dir"), choice)
    usable = [row for row in sample if row.pairs and not row.faults]
    if not usable:
        raise UniDPOError(
            f"dataset: none of the first rows of {', '.join(names)} makes a pair; uni-dpo data check says why"
        )
    return _measured(usable, rows, settings, len(usable) / len(sample))


def _sampled(entry: DatasetEntry, folder: str, media_dir: Any, choice: PairChoice) -> Iterator[CheckedRow]:
    assert entry.path is not None
    with ImageChecker(image_paths(media_dir or folder, media_dir, entry.beside)).running() as images:
        videos = VideoChecker(images) if has_decoder() else None
        checker = RowChecker(entry, images, videos, scores_required=False, choice=choice)
        left = LOOKED_AT
        for file in source_files(entry.path):
            for row in checker.rows(file, left):
                left -= 1
                yield row


def _measured(rows: list[CheckedRow], count: int, settings: Mapping[str, Any], usable: float) -> Workload:
    model = str(settings.get("model_name_or_path", ""))
    tokens = _Tokens(model)
    most, least = int(settings.get("image_max_pixels", 768 * 768)), int(settings.get("image_min_pixels", 32 * 32))
    limits = model_limits(model, ImageLimits(most, least))
    fps, maxlen = settings.get("video_fps", VideoLimits.fps), settings.get("video_maxlen", VideoLimits.most)
    frame = replace(FRAME, max_pixels=int(settings.get("video_max_pixels", 256 * 256)))
    filmed = video_limits(model, VideoLimits(float(fps), int(maxlen), frame))
    cutoff = int(settings.get("cutoff_len", 2048))
    prompts, images, answers, lengths, totals, paths = [], [], [], [], [], set[Any]()
    for row in rows:
        texts = list(dict.fromkeys(text for pair in row.pairs for text in (pair.chosen, pair.rejected)))
        image = sum(limits.tokens(state.width, state.height) for state in row.image_states)
        image += sum(map(filmed.tokens, row.video_states))
        counted = [tokens.of(text) + 2 for text in texts]
        prompt = min(_words(tokens, row.pairs[0]) + image, cutoff)
        counted = [min(answer, max(1, cutoff - prompt)) for answer in counted]
        prompts.append(prompt)
        images.append(image)
        answers += counted
        lengths.append(len(texts))
        totals.append(prompt + sum(counted))
        paths |= {image for image in row.pairs[0].images if isinstance(image, str)}
    questions = round(count * usable)
    return Workload(
        questions=questions,
        pairs=round(questions * fmean(len(row.pairs) for row in rows)),
        answers=fmean(lengths),
        prompt=fmean(prompts),
        image=fmean(images),
        answer=fmean(answers),
        longest=max(totals),
        images=round(questions * len(paths) / len(rows)),
        counted=tokens.exact,
    )


def _words(tokens: "_Tokens", pair: PreferencePair) -> int:
    """Tokens of a prompt beside those of its images and videos, with the two around each of them."""
    text, media = MEDIA.subn("", chat_text(pair))
    return tokens.of(text) + 2 * media


class _Tokens:
    """Counts tokens by the checkpoint's tokenizer.json, or from the number of characters where there is none."""

    def __init__(self, model: str) -> None:
        path = Path(model) / "tokenizer.json"
        self.exact = path.is_file()
        if self.exact:
            from tokenizers import Tokenizer

            self._tokenizer = Tokenizer.from_file(str(path))

    def of(self, text: str) -> int:
        """Tell how many tokens a text has."""
        if self.exact:
            return len(self._tokenizer.encode(text, add_special_tokens=False).ids)
        return max(1, round(len(text) / CHARACTERS_A_TOKEN))
