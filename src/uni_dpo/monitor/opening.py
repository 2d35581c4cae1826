"""Opening the ledger of a run, with the texts and images of its pairs and what was trained on what beside it."""

import dataclasses
import hashlib
import io
import json
import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from uni_dpo.ledger.columns import ledger_folder, own_folder, record_file, texts_file
from uni_dpo.ledger.writing import PairLedger, fingerprint, names_of, pair_texts, write_texts
from uni_dpo.report.page import small_jpeg
from uni_dpo.storage.identity import versions_of
from uni_dpo.storage.writing import replacing, write_text

PACKAGES = ("uni-dpo", "llamafactory", "transformers", "torch", "trl", "peft", "accelerate", "deepspeed", "datasets")
SECRET = ("_token", "api_key", "secret", "password", "webhook_url")
"""Parts of the names of settings that are written nowhere."""
_DERIVED = (
    "block_diag_attn",
    "compute_dtype",
    "device_map",
    "model_max_length",
    "logging_dir",
    "local_rank",
    "run_name",
)
"""Settings that a library works out for itself."""


def changed_settings(*groups: Any) -> dict[str, Any]:
    """Return the settings of dataclasses that differ from their defaults; no keys and tokens."""
    found = {}
    for group in groups:
        for item in dataclasses.fields(group):
            value = getattr(group, item.name, None)
            default = item.default if item.default_factory is dataclasses.MISSING else item.default_factory()
            named = item.init and item.name not in _DERIVED and not any(part in item.name for part in SECRET)
            listed = isinstance(value, list) and (not value or ",".join(map(str, value)) == default)
            if named and value != default and not listed and isinstance(value, str | int | float | bool | list):
                found[item.name] = getattr(value, "value", value)
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a training rests on, those that are installed."""
    return versions_of(PACKAGES)


def device_words(training_args: Any) -> str:
    """Return how many devices of what kind a training runs on."""
    kind = training_args.device.type
    name = torch.cuda.get_device_name() if kind == "cuda" else platform.processor() or platform.machine()
    return f"{training_args.world_size} × {kind} ({name})"


def open_ledger(training_args: Any, datasets: Iterable[Any], record: Mapping[str, Any]) -> PairLedger:
    """Return the ledger of a run; the first process writes the texts of its pairs, and the record.

    Args:
        training_args: transformers' arguments of the run.
        datasets: see `pair_texts`; the pairs of one that can only be read once are known by their keys.
        record: what was trained on what; see `llamafactory.ledger.run_record`.
    """
    output = training_args.output_dir
    kept = KeptImages(output, writes=training_args.process_index == 0)
    readable = (dataset for dataset in datasets if hasattr(dataset, "texts") or hasattr(dataset, "__len__"))
    texts = pair_texts(readable, kept.path)
    if training_args.process_index == 0:
        write_texts(texts, texts_file(output))
        whole = {**record, "pairs": len(texts), "fingerprint": fingerprint(texts)}
        write_text(record_file(output), json.dumps(whole, indent=1, default=str))
    return PairLedger(ledger_folder(output), names_of(texts), training_args.process_index, training_args.world_size)


class KeptImages:
    """Small copies of images that are stored inside a dataset, each once, until there are as many as a page holds.

    Args:
        output: the training's output folder.
        writes: whether this process writes them; one of a run does.
        limit: how many different images at most.
    """

    def __init__(self, output: str | Path, *, writes: bool, limit: int = 3_000) -> None:
        self._folder, self._writes, self._limit = own_folder(output) / "images", writes, limit
        self._known: dict[str, str | None] = {}

    def path(self, content: bytes) -> str | None:
        """Return the file of an image, written by now; None where there is no room, or it is no readable image."""
        name = hashlib.sha256(content).hexdigest()[:20]
        if name not in self._known:
            if not self._writes or len(self._known) >= self._limit:
                return None
            self._known[name] = self._written(self._folder / f"{name}.jpg", content)
        return self._known[name]

    def _written(self, file: Path, content: bytes) -> str | None:
        if not file.is_file():
            small = small_jpeg(io.BytesIO(content))
            if small is None:
                return None
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(file) as temporary:
                Path(temporary).write_bytes(small)
        return str(file)
