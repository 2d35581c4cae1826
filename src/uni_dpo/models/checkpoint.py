"""What a model path is, read from its own `config.json`: family, base weights, LoRA adapter."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError

FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")
"""`model_type` of the checkpoints that the adapter loads."""

_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk: full weights, and a LoRA adapter that lies on them or none."""

    base: Path
    adapter: Path | None
    family: str

    @property
    def processor(self) -> Path:
        """The folder whose tokenizer, template and image settings count: the adapter's where it has its own."""
        own = self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file()
        has_images = own and any(
            (self.adapter / name).is_file()  # type: ignore[operator]  # `own` implies an adapter
            for name in ("preprocessor_config.json", "processor_config.json")
        )
        return self.adapter if has_images and self.adapter else self.base


def find_checkpoint(model_path: str, adapter: str | None = None) -> Checkpoint:
    """Find the weights behind a model path before anything heavy is loaded.

    Args:
        model_path: a folder with a checkpoint, a folder with a LoRA adapter (its `adapter_config.json` names
            the base), or a name on the Hugging Face hub.
        adapter: a LoRA adapter to lay on `model_path`.

    Raises:
        UniDPOError: nothing is there, or it is not a vision-language model of a known family.
    """
    base = _folder(model_path)
    if adapter is not None:
        lora = _folder(adapter)
        if not (lora / _ADAPTER_CONFIG).is_file():
            raise UniDPOError(f"{lora} is not a LoRA adapter: it has no {_ADAPTER_CONFIG}")
        return Checkpoint(base, lora, _family(base))
    if (base / _ADAPTER_CONFIG).is_file() and not (base / "config.json").is_file():
        named = _read(base / _ADAPTER_CONFIG).get("base_model_name_or_path")
        if not named:
            raise UniDPOError(f"{base / _ADAPTER_CONFIG} names no base_model_name_or_path")
        under = _folder(named, said_by=base / _ADAPTER_CONFIG)
        return Checkpoint(under, base, _family(under))
    return Checkpoint(base, None, _family(base))


def _folder(path: str, said_by: Path | None = None) -> Path:
    source = f" (named by {said_by})" if said_by else ""
    if Path(path).is_dir():
        return Path(path)
    if Path(path).exists():
        raise UniDPOError(f"model path {path}{source} is a file; give the folder that holds config.json")
    if not _HUB_NAME.fullmatch(path):
        raise UniDPOError(f"model path {path}{source} does not exist")
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path))
    except Exception as error:  # offline, no such repository, no permission: each library version has its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UniDPOError(
            f"model {path}{source} is neither a folder here nor to be had from the hub: {reason}"
        ) from error


def _family(folder: Path) -> str:
    config = folder / "config.json"
    if not config.is_file():
        raise UniDPOError(f"{folder} is not a checkpoint: it has no config.json")
    read = _read(config)
    family = read.get("model_type")
    if family in FAMILIES:
        return str(family)
    architecture = ", ".join(read.get("architectures") or []) or "no architecture named"
    text_only = "" if "vision_config" in read else ", without a vision part"
    raise UniDPOError(
        f"{config} is of model_type {family!r} ({architecture}{text_only}); "
        f"this adapter loads vision-language models of {', '.join(FAMILIES)}"
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UniDPOError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise UniDPOError(f"{path} holds no JSON object")
    return content
