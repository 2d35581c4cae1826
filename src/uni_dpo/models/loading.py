"""The one place where a language or vision-language model is loaded: full weights, an adapter, quantized or not."""

import functools
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.models.checkpoint import Checkpoint
from uni_dpo.storage import read_json

DTYPES = ("float32", "bfloat16", "float16")


def load_model(
    checkpoint: Checkpoint,
    *,
    dtype: Any = "auto",
    device: str | None = "auto",
    attention: str | None = None,
    quantization: str | None = None,
    device_map: Any = None,
    trust_remote_code: bool = False,
    **more: Any,
) -> Any:
    """Load a model, its adapter merged into it unless it is quantized, ready to be asked.

    Args:
        checkpoint: what `find_checkpoint` found.
        dtype: of the weights: `auto` is the checkpoint's own, None what suits the device; a name or a torch dtype.
        device: where to put it; `auto` takes the accelerator if there is one, None leaves it where it was loaded.
        attention: transformers' name of an implementation.
        quantization: `4bit` or `8bit` by bitsandbytes.
        device_map: spreads one model over several devices, in place of `device`.
        more: further arguments of `from_pretrained`.

    Raises:
        UniDPOError: it cannot be loaded, or device, dtype or quantization is not to be had here.
    """
    import transformers
    from packaging.version import Version

    where = best_device() if device in ("auto", None) else str(device)
    named = {
        "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype": find_dtype(dtype, where)
    }
    trust = {"trust_remote_code": trust_remote_code}
    if quantization is not None:
        more["quantization_config"] = _quantization(quantization, named)
        device_map = device_map or {"": where}
    with one_line(checkpoint):
        config = transformers.AutoConfig.from_pretrained(checkpoint.base, **trust)
        quantized = quantization is not None or getattr(config, "quantization_config", None) is not None
        seeing = transformers.AutoModelForImageTextToText
        sees = type(config) in seeing._model_mapping or "AutoModelForImageTextToText" in getattr(config, "auto_map", {})
        model, found = (seeing if sees else transformers.AutoModelForCausalLM).from_pretrained(
            checkpoint.base,
            output_loading_info=True,
            **({"attn_implementation": attention} if attention else {}),
            **({"device_map": device_map} if device_map else {}),
            **named,
            **trust,
            **more,
        )
        _refuse_missing(checkpoint.base, model, found)
        if checkpoint.adapter is not None:
            model = _with_adapter(model, checkpoint)
            model = model if quantized else model.merge_and_unload()
        if device is None or device_map or quantized:
            return model.eval()
        return model.to(where).eval()


def load_class(cls: Any, name: str | Path, **options: Any) -> Any:
    """Load a model by its class.

    Raises:
        UniDPOError: it cannot be loaded, or weights are missing.
    """
    with one_line(name):
        model, found = cls.from_pretrained(name, output_loading_info=True, **options)
        _refuse_missing(name, model, found)
        return model


def _refuse_missing(name: str | Path, model: Any, found: Mapping[str, Any]) -> None:
    """Raise an error where weights are missing: transformers draws those at random."""
    if missing := sorted(found["missing_keys"]):
        unknown = sorted(found["unexpected_keys"])
        others = f"; it has {len(unknown)} that are none, such as {unknown[0]}" if unknown else ""
        lacks = f"lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}"
        raise UniDPOError(f"{name}: {lacks}{others}; save it again")


@contextmanager
def all_weights() -> Iterator[None]:
    """Refuse a model that lacks weights where another package loads it in this block.

    Raises:
        UniDPOError: weights are missing.
    """
    from transformers import PreTrainedModel

    stock = PreTrainedModel.__dict__["from_pretrained"]

    def checked(cls: Any, name: Any, *more: Any, **options: Any) -> Any:
        model, found = stock.__get__(None, cls)(name, *more, **{**options, "output_loading_info": True})
        _refuse_missing(name, model, found)
        return (model, found) if options.get("output_loading_info") else model

    PreTrainedModel.from_pretrained = classmethod(checked)
    try:
        yield
    finally:
        PreTrainedModel.from_pretrained = stock


def load_alike(model: Any, folder: str | Path) -> Any:
    """Load a checkpoint as another model of the class and configuration of `model`.

    Its weights have the widest precision of `model`'s: frozen parts may be in bf16 beside a trained float32.
    """
    import torch

    dtypes = (parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    widest = functools.reduce(torch.promote_types, dtypes)
    return type(model).from_pretrained(folder, config=model.config, dtype=widest)


def load_start(checkpoint: Checkpoint, folder: str | Path, **options: Any) -> Any:
    """Load a model to train on (see `load_model`), on the CPU unless `options` say otherwise.

    What a trained adapter lies on is known by a folder. So where the start is an adapter on a base, the merged model
    is written to `folder/start`, in that of the run, and loaded from there, by every process.

    Raises:
        UniDPOError: it cannot be loaded, or its adapter cannot be merged.
    """
    if checkpoint.adapter is not None:
        from accelerate import PartialState

        start, state = Path(folder) / "start", PartialState()
        if state.is_main_process:
            _write_merged(checkpoint, start, options.get("dtype", "auto"), bool(options.get("trust_remote_code")))
        state.wait_for_everyone()
        checkpoint = Checkpoint(start, None, checkpoint.family)
    return load_model(checkpoint, **{"device": None, **options})


def _write_merged(checkpoint: Checkpoint, folder: Path, dtype: Any, trust_remote_code: bool) -> None:
    if read_json(checkpoint.base / "config.json").get("quantization_config"):
        raise UniDPOError(f"{checkpoint}: lies on quantized weights, into which it cannot be merged")
    model = load_model(checkpoint, dtype=dtype, device=None, trust_remote_code=trust_remote_code)
    written = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(written, ignore_errors=True)
    model.save_pretrained(written)
    load_processor(checkpoint, trust_remote_code=trust_remote_code).save_pretrained(written)
    shutil.rmtree(folder, ignore_errors=True)
    written.replace(folder)


def _with_adapter(model: Any, checkpoint: Checkpoint) -> Any:
    from peft import PeftModel

    with warnings.catch_warnings():
        # PEFT only warns where an adapter's weights find no place, and leaves the model as it was.
        warnings.filterwarnings("error", message=".*missing adapter keys")
        try:
            return PeftModel.from_pretrained(model, str(checkpoint.adapter))
        except (OSError, ValueError, RuntimeError, UserWarning) as error:
            reason = str(error).splitlines()[0][:300]
            raise UniDPOError(f"the adapter {checkpoint.adapter} does not fit {checkpoint.base}: {reason}") from error


def load_processor(
    checkpoint: Checkpoint,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    trust_remote_code: bool = False,
) -> Any:
    """Load the processor of a vision-language model, or the tokenizer of a text model; it has a padding token.

    Raises:
        UniDPOError: it cannot be loaded, or its tokenizer knows no words.
    """
    from transformers import AutoProcessor, AutoVideoProcessor

    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    given = {name: value for name, value in limits.items() if value is not None}
    with one_line(checkpoint.processor, "tokenizer and processor of "):
        processor = AutoProcessor.from_pretrained(checkpoint.processor, trust_remote_code=trust_remote_code, **given)
        if given and hasattr(processor, "video_processor"):  # it takes the limits of images for its own
            own = AutoVideoProcessor.from_pretrained(checkpoint.processor, trust_remote_code=trust_remote_code)
            processor.video_processor = own
    tokenizer = getattr(processor, "tokenizer", processor)
    if len(tokenizer) <= len(tokenizer.get_added_vocab()):  # made up by transformers: every text would be empty
        raise UniDPOError(f"{checkpoint.processor}: the files of its tokenizer are missing; copy them from its base")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


@contextmanager
def one_line(checkpoint: Any, what: str = "") -> Iterator[None]:
    """Turn what loading raises in this block into one line that names the checkpoint.

    Raises:
        UniDPOError: because of the first line of what was raised.
    """
    try:
        yield
    except UniDPOError:
        raise
    except Exception as error:  # safetensors, tokenizers, torch and PEFT have exceptions of their own
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            raise UniDPOError(f"{checkpoint} does not fit into memory: {error}") from error
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
        reason = " ".join(lines[: 1 + lines[0].endswith(":")])
        gone = isinstance(checkpoint, str) and not Path(checkpoint).exists()
        missing = "; there is no such folder here" if gone else ""
        raise UniDPOError(f"{what}{checkpoint} cannot be loaded{missing}: {reason}") from error


def find_dtype(name: Any, device: str) -> Any:
    """Turn a name into torch's dtype; `auto` stays, None is what suits `device`.

    Raises:
        UniDPOError: no such dtype.
    """
    import torch

    if name == "auto" or isinstance(name, torch.dtype):
        return name
    if name is not None:
        check_dtype(name)
        return getattr(torch, name)
    if device == "cpu":
        return torch.float32
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16


def check_dtype(name: str | None) -> None:
    """Raise a UniDPOError where no weights can have this dtype."""
    if name is not None and name not in ("auto", *DTYPES):
        hint = did_you_mean(name, DTYPES)
        raise UniDPOError(f"dtype is {name!r}; it can be auto, float32, bfloat16 or float16{hint}")


def best_device() -> str:
    """Name the accelerator of this process, or the CPU.

    Under torchrun each process takes the device of its own number; where the launcher has shown it a single
    device, that one.
    """
    import torch

    if torch.cuda.is_available():
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        return f"cuda:{local_rank if local_rank < torch.cuda.device_count() else 0}"
    accelerator = getattr(torch, "accelerator", None)
    if accelerator is not None and accelerator.is_available():
        return str(accelerator.current_accelerator())
    return "cpu"


def best_attention(device: str, dtype: str) -> str:
    """Name FlashAttention where it imports and can run, PyTorch's own fused attention elsewhere."""
    if device.startswith("cuda") and "16" in dtype:
        try:
            import flash_attn  # noqa: F401
        except ImportError:
            return "sdpa"
        return "flash_attention_2"
    return "sdpa"


def _quantization(wanted: str, named: dict[str, Any]) -> Any:
    from importlib.util import find_spec

    import torch
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise UniDPOError(f"quantization {wanted} needs bitsandbytes, which is not installed")
    compute = next(iter(named.values()))
    if wanted == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute if isinstance(compute, torch.dtype) else torch.bfloat16,
    )
