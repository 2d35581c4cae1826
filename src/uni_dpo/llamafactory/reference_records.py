"""Log-probabilities of answers on disk, in files that are only ever appended to.

A record holds the digest of a prompt with one answer, a number, and a checksum. Every pass writes a file of its own,
so a pass that was cut off leaves whole records and at most one torn one behind, which its checksum gives away.
"""

import os
import secrets
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from llamafactory.extras.env import VERSION

from uni_dpo import __version__
from uni_dpo.storage.identity import file_stamps

RECORD = np.dtype([("digest", "V32"), ("logp", "<f8"), ("checksum", "<u4")])
SUFFIX = ".answers"


def read_records(folder: Path) -> tuple[dict[bytes, float], int]:
    """Read what all passes wrote to `folder`.

    Returns:
        Digest → log-probability, and how many records were damaged and left out.
    """
    found: dict[bytes, float] = {}
    damaged = 0
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        content = path.read_bytes()
        whole = len(content) // RECORD.itemsize
        damaged += whole * RECORD.itemsize != len(content)
        for record in np.frombuffer(content, RECORD, whole):
            if record["checksum"] == _checksum(record) and np.isfinite(record["logp"]):
                found[record["digest"].tobytes()] = float(record["logp"])
            else:
                damaged += 1
    return found, damaged


@contextmanager
def appending(folder: Path, rank: int) -> Iterator[Callable[[Mapping[bytes, float]], None]]:
    """Give what appends records, digest → log-probability, to a new file in `folder` for one pass of one rank.

    Each call is on disk when it returns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"rank-{rank:04}-{secrets.token_hex(8)}{SUFFIX}").open("xb") as file:

        def write(logps: Mapping[bytes, float]) -> None:
            records = np.array([(digest, logp, 0) for digest, logp in logps.items()], RECORD)
            for record in records:
                record["checksum"] = _checksum(record)
            file.write(records.tobytes())
            file.flush()
            os.fsync(file.fileno())

        yield write


def _checksum(record: Any) -> int:
    return zlib.crc32(record.tobytes()[: -RECORD["checksum"].itemsize])


RANK_SETTINGS = ("device_map", "cache_dir", "offload_folder")
"""Model arguments that say where things are, not what they are."""


def reference_identity(model_args: Any, data_args: Any, training_args: Any, finetuning_args: Any) -> dict[str, Any]:
    """Return everything but the pairs that changes reference log-probabilities."""
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
    """Return everything but the pixels that changes the image features of the policy, whose vision is frozen."""
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
