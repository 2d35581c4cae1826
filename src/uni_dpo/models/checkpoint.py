"""What a model path is, read from its own files: family, base weights, LoRA adapter. Nothing heavy is imported."""

import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.storage import read_json

QWEN_FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen3_5")
"""`model_type` of the checkpoints that VLMEvalKit's adapter loads."""

ADAPTER_CONFIG = "adapter_config.json"
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_WANTED = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.py"]
"""Of a checkpoint on the hub; weights in other formats are not fetched."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: full weights, and a LoRA adapter that lies on them or none.

    Attributes:
        family: the `model_type` of its `config.json`.
    """

    base: Path
    adapter: Path | None
    family: str

    def __str__(self) -> str:
        return str(self.adapter or self.base)

    @property
    def processor(self) -> Path:
        """The folder whose tokenizer, template and image settings count: the adapter's where it has its own."""
        adapter = self.adapter
        if adapter is None or not (adapter / "tokenizer_config.json").is_file():
            return self.base
        of_images = ("preprocessor_config.json", "processor_config.json")
        if any((self.base / name).is_file() for name in of_images):
            return adapter if any((adapter / name).is_file() for name in of_images) else self.base
        return adapter

    def of(self, families: Sequence[str]) -> "Checkpoint":
        """Return this checkpoint where it is of one of `families`.

        Raises:
            UniDPOError: it is of another.
        """
        if self.family in families:
            return self
        config = self.base / "config.json"
        read = read_json(config)
        architecture = ", ".join(read.get("architectures") or []) or "no architecture named"
        text_only = "" if "vision_config" in read else ", without a vision part"
        raise UniDPOError(
            f"{config} is of model_type {self.family!r} ({architecture}{text_only}); "
            f"this adapter loads vision-language models of {', '.join(families)}"
        )


def find_checkpoint(
    model_path: str | Path, adapter: str | Path | None = None, *, revision: str | None = None
) -> Checkpoint:
    """Find the weights behind a model path before anything heavy is loaded, and see that they are whole.

    Args:
        model_path: a folder with a checkpoint, a folder with a LoRA adapter (its `adapter_config.json` names
            the base), or a name on the Hugging Face hub.
        adapter: a LoRA adapter to lay on `model_path`.
        revision: of a name on the hub.

    Raises:
        UniDPOError: nothing is there, or a file of it is missing or damaged; the message names the file.
    """
    base = _folder(str(model_path), revision=revision)
    lora: Path | None = None
    if adapter is not None:
        lora = _folder(str(adapter))
        if not (lora / ADAPTER_CONFIG).is_file():
            raise UniDPOError(f"{lora} is not a LoRA adapter: it has no {ADAPTER_CONFIG}")
        if is_adapter(base):
            raise UniDPOError(f"{base} is a LoRA adapter itself; name the checkpoint that {lora} lies on")
    elif is_adapter(base):
        lora, base = base, adapter_base(base)
    family = read_json(base / "config.json").get("model_type")
    if not (base / "config.json").is_file():
        raise UniDPOError(f"{base} is not a checkpoint: it has no config.json")
    if not isinstance(family, str):
        raise UniDPOError(f"{base / 'config.json'} names no model_type; is it a model's configuration?")
    check_weights(base)
    if lora is not None:
        check_weights(lora, "adapter_model")
    return Checkpoint(base, lora, family)


def is_adapter(folder: Path) -> bool:
    """Tell a LoRA adapter from a whole checkpoint."""
    return (folder / ADAPTER_CONFIG).is_file() and not (folder / "config.json").is_file()


def adapter_base(folder: Path) -> Path:
    """Find the checkpoint that an adapter lies on.

    Raises:
        UniDPOError: it names none, or none that is there.
    """
    file = folder / ADAPTER_CONFIG
    named = read_json(file).get("base_model_name_or_path")
    if not isinstance(named, str) or not named:
        raise UniDPOError(f"{file} names no base_model_name_or_path; name the base beside the adapter")
    return _folder(named, said_by=file)


def check_weights(folder: Path, stem: str = "model") -> None:
    """See that a folder's safetensors are there and as long as they say: `model`, `adapter_model` or `value_head`.

    Raises:
        UniDPOError: a file is missing or cut; the message names it.
    """
    index = folder / f"{stem}.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise UniDPOError(f"{index} has no weight_map")
        files = [folder / str(name) for name in sorted(set(shards.values()))]
    else:
        files = [folder / f"{stem}.safetensors"]
    for file in files:
        if not file.is_file():
            pickled = sorted(folder.glob("*.bin")) if not index.is_file() else []
            instead = f"; {pickled[0].name} is a pickle and is not read: convert it" if pickled else ""
            raise UniDPOError(f"{file}: the weights are missing{instead}")
        _check_whole(file)


def tensor_names(file: Path) -> set[str]:
    """Return names of the weights in a whole safetensors file."""
    return set(_header(file)[1]) - {"__metadata__"}


def _header(file: Path) -> tuple[int, dict[str, Any]]:
    """A safetensors file is 8 bytes of length, a JSON header of that length, and as many bytes as the header says."""
    with file.open("rb") as opened:
        (length,) = struct.unpack("<Q", opened.read(8))
        if length > file.stat().st_size - 8:
            raise ValueError("its header is cut")
        return 8 + length, json.loads(opened.read(length))


def _check_whole(file: Path) -> None:
    size = file.stat().st_size
    try:
        start, header = _header(file)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise UniDPOError(f"{file}: is damaged, no whole safetensors file ({error}); copy it again") from error
    if (expected := start + max(ends, default=0)) != size:
        raise UniDPOError(f"{file}: is damaged, {size:,} bytes where {expected:,} belong; copy it again")


def _folder(path: str, said_by: Path | None = None, revision: str | None = None) -> Path:
    source = f" (named by {said_by})" if said_by else ""
    if Path(path).is_dir():
        return Path(path)
    if Path(path).exists():
        raise UniDPOError(f"model path {path}{source} is a file; give the folder that holds config.json")
    if not _HUB_NAME.fullmatch(path):
        raise UniDPOError(f"model {path!r}{source} cannot be loaded; there is no such folder here")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, revision=revision, allow_patterns=_WANTED))
    except Exception as error:  # offline, no such repository, no permission: each library version has its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UniDPOError(
            f"model {path!r}{source} cannot be loaded; it is no folder here, and the hub does not give it: {reason}"
        ) from error
