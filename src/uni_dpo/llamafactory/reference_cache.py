"""Reference log-probabilities, computed once before training and kept on disk for every run that needs the same.

What changes them is in one of two places: the reference model and how it is run, in the name of the folder; and the
pair, its tokens and images, in the digest of its record. A change of either is another name, so nothing stale is read.
"""

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from llamafactory.extras import logging
from llamafactory.extras.env import VERSION
from torch import Tensor
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import TrainerCallback

from uni_dpo import __version__
from uni_dpo.errors import UniDPOError
from uni_dpo.llamafactory.reference_records import appending, read_records
from uni_dpo.storage.identity import file_stamps, folder_of

logger = logging.get_logger(f"llamafactory.{__name__}")  # below LlamaFactory's own, which shows what is INFO

DIGEST = "pair_digest"
"""The column that a dataset gets: what stands for a pair in the cache."""

LOGPS = "reference_logps"
"""The batch's key: bits of float32 numbers as int32, (2n,), since Trainer rounds floats under DeepSpeed."""

TOKEN_COLUMNS = ("chosen_input_ids", "chosen_labels", "rejected_input_ids", "rejected_labels")
MEDIA_COLUMNS = ("images", "videos", "audios")
RANK_SETTINGS = ("device_map", "cache_dir", "offload_folder")
"""Model arguments that say where things are, not what they are."""


class ReferenceCache:
    """The reference log-probabilities of one reference model, run in one way.

    Args:
        folder: where runs with any reference keep theirs; each has a folder in it, named after `identity`.
        identity: everything that changes the numbers but the pairs themselves; JSON-like.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder = folder_of(identity, folder)
        self._wanted: list[bytes] = []
        self._read()

    def expect(self, datasets: dict[str, Any]) -> dict[str, Any]:
        """Take note of tokenized datasets, or of dicts of them, whose pairs will be asked for.

        Returns:
            The same, each with the digests of its pairs as a column.

        Raises:
            UniDPOError: one is streamed, so that its pairs can't be known before training.
        """
        noted: dict[str, Any] = {}
        for name, found in datasets.items():
            if isinstance(found, dict):
                noted[name] = self.expect(found)
            else:
                noted[name] = None if found is None else self._with_digests(found)
        return noted

    def _with_digests(self, dataset: Any) -> Any:
        if not hasattr(dataset, "add_column") or not hasattr(dataset, "__len__"):
            raise UniDPOError("precompute_ref_log_probs needs all pairs before training: set streaming: false")
        digests = [pair_digest(row) for row in tqdm(dataset, "Looking up reference log-probs", disable=_quiet())]
        self._wanted.extend(digests)
        return dataset.add_column(DIGEST, [digest.hex() for digest in digests])

    def complete(self) -> bool:
        """Whether every expected pair is known, so that no reference model is needed."""
        return all(digest in self._known for digest in self._wanted)

    def __str__(self) -> str:
        """What is there, for the log."""
        return (
            f"{sum(digest in self._known for digest in self._wanted):,} of {len(self._wanted):,} pairs in {self.folder}"
        )

    def values(self, digests: Iterable[str]) -> list[tuple[float, float]]:
        """Look up (chosen, rejected) for each digest."""
        return [self._known[bytes.fromhex(digest)] for digest in digests]

    def fill(self, trainer: Any) -> None:
        """Compute what is missing with the trainer's reference model; ranks share the work.

        What was computed before an interruption is kept, and the next run goes on from there.

        Raises:
            UniDPOError: ranks don't see one another's files.
        """
        splits = [trainer.train_dataset, trainer.eval_dataset]
        for dataset in (part for split in splits for part in (split.values() if isinstance(split, dict) else [split])):
            if dataset is not None and DIGEST in dataset.column_names:
                self._compute(trainer, dataset)
        trainer.accelerator.wait_for_everyone()
        self._read()
        if not self.complete():
            raise UniDPOError(
                f"{self.folder} lacks what other ranks computed: set ref_cache_dir to a folder that all machines share"
            )

    def _compute(self, trainer: Any, dataset: Any) -> None:
        digests = dataset[DIGEST]
        missing = [row for row, digest in enumerate(digests) if bytes.fromhex(digest) not in self._known]
        if not missing:
            return
        rank, ranks = trainer.args.process_index, trainer.args.world_size
        # Every rank runs as many batches as any other, as sharded models demand; some pairs are computed twice.
        share = -(-len(missing) // ranks)
        mine = [missing[(rank * share + at) % len(missing)] for at in range(share)]
        loader = DataLoader(
            dataset.select(mine),
            batch_size=trainer.args.per_device_train_batch_size,
            collate_fn=_WithDigests(trainer.data_collator.collator),
            num_workers=trainer.args.dataloader_num_workers,
        )
        model = trainer.model_wrapped
        was_training = model.training
        model.eval()
        with (
            appending(self.folder, rank) as records,
            tqdm(total=len(mine), desc="Reference log-probs", unit="pair", disable=_quiet()) as progress,
        ):
            for batch_digests, batch in loader:
                with torch.no_grad(), trainer.accelerator.autocast():
                    batch.pop("scores", None)
                    logps = trainer.compute_reference_log_probs(model, trainer._prepare_inputs(batch))
                records.write(map(bytes.fromhex, batch_digests), *(part.double().tolist() for part in logps))
                progress.update(len(batch_digests))
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


@dataclass
class _WithDigests:
    """A collator's batches together with the digests of their pairs."""

    collator: Any

    def __call__(self, features: list[dict[str, Any]]) -> tuple[list[str], dict[str, Any]]:
        return [feature[DIGEST] for feature in features], self.collator(features)


@dataclass
class ReferenceCollator:
    """Any pairwise collator, whose batches then hold the reference log-probabilities."""

    collator: Any
    cache: ReferenceCache

    def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
        """Collate a batch; the chosen answers' log-probabilities first, then the rejected ones'."""
        chosen, rejected = zip(*self.cache.values(feature[DIGEST] for feature in features), strict=True)
        batch = self.collator(features)
        batch[LOGPS] = torch.tensor([*chosen, *rejected], dtype=torch.float32).view(torch.int32)
        return batch


def take_reference(batch: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    """Remove the reference log-probabilities, (n,) of the chosen and of the rejected answers, if a batch has them."""
    if LOGPS not in batch:
        return None
    chosen, rejected = batch.pop(LOGPS).view(torch.float32).chunk(2)
    return chosen, rejected


def pair_digest(row: dict[str, Any]) -> bytes:
    """SHA-256 over the tokens and labels of a tokenized pair and over what identifies its media.

    A file is identified by path, size and time of change; anything else by its content.
    """
    digest = hashlib.sha256()
    for column in TOKEN_COLUMNS:
        digest.update(len(row[column]).to_bytes(8, "little") + np.asarray(row[column], np.int64).tobytes())
    for column in MEDIA_COLUMNS:
        media = row.get(column) or []
        digest.update(len(media).to_bytes(8, "little"))
        for item in media:
            digest.update(hashlib.sha256(_media_identity(item)).digest())
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


def reference_identity(model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any) -> dict[str, Any]:
    """Everything but the pairs that changes reference log-probabilities.

    Args:
        model_args: LlamaFactory's, as are `data_args`, `training_args` and `finetuning_args`.
    """
    model = finetuning_args.ref_model or model_args.model_name_or_path
    adapters = finetuning_args.ref_model_adapters if finetuning_args.ref_model else model_args.adapter_name_or_path
    identity = _model_identity(model, adapters, model_args, training_args)
    if adapters and not finetuning_args.ref_model:
        merged = finetuning_args.create_new_adapter
        identity["adapters of the reference"] = "merged" if merged else "beside the weights"
    return {
        **identity,
        "quantization of the reference": finetuning_args.ref_model_quantization_bit,
        "template": data_args.template,
        "cutoff": data_args.cutoff_len,
        "pair_forward": [finetuning_args.pair_forward, finetuning_args.pair_attention],
        "averaged": finetuning_args.averages_logps,
    }


def vision_identity(model_args: Any, training_args: Any) -> dict[str, Any]:
    """Everything but the pixels that changes the image features of the policy, whose vision is frozen.

    Args:
        model_args: LlamaFactory's, as are `training_args`.
    """
    return _model_identity(model_args.model_name_or_path, model_args.adapter_name_or_path, model_args, training_args)


def _model_identity(
    model: str, adapters: str | list[str] | None, model_args: Any, training_args: Any
) -> dict[str, Any]:
    settings = {name: value for name, value in model_args.to_dict().items() if name not in RANK_SETTINGS}
    return {
        "model": {model: _files(model, "config.json", model_args)},
        "adapters": {name: _files(name, "adapter_config.json", model_args) for name in _listed(adapters)},
        "settings": settings,
        "precision": [training_args.bf16, training_args.fp16, training_args.device.type],
        "versions": [__version__, VERSION, transformers.__version__, torch.__version__],
    }


def _listed(names: str | list[str] | None) -> list[str]:
    return names.split(",") if isinstance(names, str) else list(names or [])


def _files(name: str, config: str, model_args: Any) -> Any:
    """What a checkpoint is made of: names, sizes and times of its files, or the commit of a downloaded one."""
    if not Path(name).is_dir():
        revision, cache = model_args.model_revision, model_args.cache_dir
        found = transformers.utils.cached_file(name, config, cache_dir=cache, revision=revision)
        return Path(found).parent.name
    return file_stamps(name)


def _quiet() -> bool:
    return int(os.getenv("LOCAL_RANK", "0")) != 0
