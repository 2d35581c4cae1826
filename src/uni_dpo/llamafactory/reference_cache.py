"""Reference log-probabilities, computed once before training and kept on disk for every run that needs the same.

They are kept per answer: one that stands in several pairs of a question runs once, and other pairs of the same answers
need no other run. What changes them is in one of two places: the reference model and how it is run, in the name of the
folder; and the prompt, its images and the answer, in the digest of a record. A change of either is another name, so
nothing stale is read.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llamafactory.extras import logging
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
from transformers import TrainerCallback

from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory.question_pairs import MEDIA, REJECTED_IMAGES, as_bits
from uni_dpo.llamafactory.reference_records import appending, read_records
from uni_dpo.llamafactory.seams import first_process
from uni_dpo.storage.identity import folder_of

logger = logging.get_logger(f"llamafactory.{__name__}")  # below LlamaFactory's own, which shows what is INFO

DIGESTS = "answer_digests"
"""What a pair gets beside its tokens: what stands for its chosen and its rejected answer in the cache."""

LOGPS = "reference_logps"
"""The batch's key, of `as_bits`, (2n,)."""

TOKEN_COLUMNS = {side: (f"{side}_input_ids", f"{side}_labels") for side in ("chosen", "rejected")}


def over_splits(change: Callable[[Any], Any], datasets: Any) -> Any:
    """Change every dataset of LlamaFactory's, of which dicts hold several by name."""
    if isinstance(datasets, dict):
        return {name: over_splits(change, found) for name, found in datasets.items()}
    return None if datasets is None else change(datasets)


def datasets_of(trainer: Any) -> Iterator[Any]:
    """Yield the datasets that a trainer has; for evaluation there may be several."""
    for split in (trainer.train_dataset, trainer.eval_dataset):
        for dataset in split.values() if isinstance(split, dict) else [split]:
            if dataset is not None:
                yield dataset


class ReferenceCache:
    """The reference log-probabilities of one reference model, run in one way.

    Args:
        folder: where runs with any reference keep theirs; each has a folder in it, named after `identity`.
        identity: everything that changes the numbers but the answers themselves; JSON-like.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder_of(identity, folder)
        self._wanted: set[bytes] = set()
        self._read()

    def expect(self, datasets: dict[str, Any]) -> dict[str, Any]:
        """Take note of tokenized datasets, or of dicts of them, whose answers will be asked for.

        Returns:
            The same, each pair with the digests of its answers.

        Raises:
            UniDPOError: one is streamed, so that its pairs can't be known before training.
        """
        noted: dict[str, Any] = over_splits(self._with_digests, datasets)
        return noted

    def _with_digests(self, dataset: Any) -> "DigestedPairs":
        if not hasattr(dataset, "__len__"):
            raise UniDPOError("precompute_ref_log_probs needs all pairs before training: set streaming: false")
        rows = tqdm(dataset, "Looking up reference log-probs", disable=not first_process())
        pairs = DigestedPairs(dataset, [answer_digests(row) for row in rows])
        self._wanted.update(digest for both in pairs.digests for digest in both)
        return pairs

    def complete(self) -> bool:
        """Tell whether every expected answer is known, so that no reference model is needed."""
        return self._wanted <= self._known.keys()

    def __str__(self) -> str:
        """What is there, for the log."""
        return f"{len(self._wanted & self._known.keys()):,} of {len(self._wanted):,} answers in {self.folder}"

    def values(self, digests: Iterable[bytes]) -> list[float]:
        """Look up the log-probability of each answer."""
        return [self._known[digest] for digest in digests]

    def fill(self, trainer: Any) -> None:
        """Compute what is missing with the trainer's reference model; ranks share the work.

        What was computed before an interruption is kept, and the next run goes on from there.

        Raises:
            UniDPOError: ranks don't see one another's files.
        """
        for dataset in datasets_of(trainer):
            if isinstance(dataset, DigestedPairs):
                self._compute(trainer, dataset)
        trainer.accelerator.wait_for_everyone()
        self._read()
        if not self.complete():
            raise UniDPOError(
                f"{self.folder} lacks what other ranks computed: set ref_cache_dir to a folder that all machines share"
            )

    def _compute(self, trainer: Any, dataset: "DigestedPairs") -> None:
        missing = dataset.covering(self._known.keys())
        if not missing:
            return
        rank, ranks = trainer.args.process_index, trainer.args.world_size
        # Every rank runs as many batches as any other, as sharded models demand; some answers are computed twice.
        share = -(-len(missing) // ranks)
        mine = [missing[(rank * share + at) % len(missing)] for at in range(share)]
        loader = DataLoader(
            Subset(dataset, mine),
            batch_size=trainer.args.per_device_train_batch_size,
            collate_fn=_WithDigests(trainer.data_collator.collator),
            num_workers=trainer.args.dataloader_num_workers,
        )
        model = trainer.model_wrapped
        was_training = model.training
        model.eval()
        with (
            appending(self.folder, rank) as write,
            tqdm(total=len(mine), desc="Reference log-probs", unit="pair", disable=not first_process()) as progress,
        ):
            for batch_digests, batch in loader:
                with torch.no_grad(), trainer.accelerator.autocast():
                    inputs = trainer._prepare_inputs(trainer.model_inputs(batch))
                    logps = trainer.compute_reference_log_probs(model, inputs)
                values = torch.cat(list(logps)).double().tolist()
                found = dict(zip(batch_digests, values, strict=True))
                write({digest: found[digest] for digest in found.keys() - self._known.keys()})
                progress.update(len(batch_digests) // 2)
        model.train(was_training)

    def _read(self) -> None:
        self._known, damaged = read_records(self.folder)
        if damaged:
            logger.warning_rank0(f"Damaged records in {self.folder}: {damaged}; they are computed again.")


@dataclass
class FillWhenWrapped(TrainerCallback):
    """Fills a cache after the trainer has wrapped its model and before the first step.

    For a reference that is the policy without its adapters: sharded by DeepSpeed, it does not run without the wrapper.
    """

    cache: ReferenceCache
    trainer: Any

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        """See `ReferenceCache.fill`."""
        self.cache.fill(self.trainer)


class DigestedPairs(Dataset[dict[str, Any]]):
    """Tokenized pairs, each with the digests of its two answers."""

    def __init__(self, pairs: Any, digests: list[tuple[bytes, bytes]]) -> None:
        self.pairs, self.digests = pairs, digests

    def __len__(self) -> int:
        return len(self.digests)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return {**self.pairs[place], DIGESTS: self.digests[place]}

    def covering(self, known: Collection[bytes]) -> list[int]:
        """Return the places of few pairs, in their order, in which every answer stands that is not `known`."""
        covered: set[bytes] = set()
        found: list[int] = []
        for wanted in (2, 1):  # first the pairs of two answers that nothing covers yet, then those of one
            for place, both in enumerate(self.digests):
                new = {digest for digest in both if digest not in known and digest not in covered}
                if new and len(new) >= min(wanted, len({*both})):
                    covered |= new
                    found.append(place)
        return sorted(found)


@dataclass
class _WithDigests:
    """A collator's batches together with the digests of their answers, the chosen ones first."""

    collator: Any

    def __call__(self, features: list[dict[str, Any]]) -> tuple[list[bytes], dict[str, Any]]:
        return _digests(features), self.collator(features)


@dataclass
class ReferenceCollator:
    """Any pairwise collator, whose batches then hold the reference log-probabilities."""

    collator: Any
    cache: ReferenceCache

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate a batch; the chosen answers' log-probabilities first, then the rejected ones'."""
        logps = self.cache.values(_digests(features))
        batch = self.collator(features)
        batch[LOGPS] = as_bits(logps)
        return batch


def _digests(features: list[dict[str, Any]]) -> list[bytes]:
    return [feature[DIGESTS][side] for side in (0, 1) for feature in features]


def answer_digests(row: dict[str, Any]) -> tuple[bytes, bytes]:
    """Return SHA-256 over the tokens and labels of each side of a tokenized pair and over what identifies its media.

    A file is identified by path, size and time of change; anything else by its content.
    """
    media = media_of_rejected = _media_digest(row)
    if row.get(REJECTED_IMAGES):
        media_of_rejected = _media_digest({**row, "images": row[REJECTED_IMAGES]})
    return _answer_digest(row, "chosen", media), _answer_digest(row, "rejected", media_of_rejected)


def _media_digest(row: dict[str, Any]) -> bytes:
    media = hashlib.sha256()
    for column in MEDIA:
        items = row.get(column) or []
        media.update(len(items).to_bytes(8, "little"))
        for item in items:
            media.update(hashlib.sha256(_media_identity(item)).digest())
    return media.digest()


def _answer_digest(row: dict[str, Any], side: str, media: bytes) -> bytes:
    digest = hashlib.sha256(media)
    for column in TOKEN_COLUMNS[side]:
        digest.update(len(row[column]).to_bytes(8, "little") + np.asarray(row[column], np.int64).tobytes())
    return digest.digest()


def _media_identity(item: Any) -> bytes:
    if isinstance(item, dict) and item.get("bytes") is not None:
        return item["bytes"]
    path = item.get("path") if isinstance(item, dict) else item
    if isinstance(path, str | os.PathLike):
        found = Path(path).stat()
        return f"{Path(path).resolve()}\0{found.st_size}\0{found.st_mtime_ns}".encode()
    if isinstance(item, list):
        return b"".join(hashlib.sha256(_media_identity(part)).digest() for part in item)
    return item.tobytes() if hasattr(item, "tobytes") else item
