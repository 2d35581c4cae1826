"""Batched generation with transformers on whatever device is there."""

import os
import sys
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.models.checkpoint import Checkpoint
from uni_dpo.models.vision import load_vision
from uni_dpo.vlmeval.backends import Request
from uni_dpo.vlmeval.settings import ModelSettings


class TransformersBackend:
    """One model on one device (or spread by `device_map`), answering a padded batch at a time."""

    def __init__(self, checkpoint: Checkpoint, settings: ModelSettings, processor: Any) -> None:
        """Load the weights.

        Raises:
            UniDPOError: they cannot be read, or device, dtype or attention is not to be had here.
        """
        self.settings = settings
        self.processor = processor
        self.processor.tokenizer.padding_side = "left"
        self.model = _load(checkpoint, settings)
        self._fits = sys.maxsize
        """The largest batch that is not known to be too large; rows come longest first."""

    @property
    def comfortable_batch(self) -> int:
        """16 on a CPU; 64 on an accelerator, from where it is lowered to what fits."""
        return 16 if self.model.device.type == "cpu" else 64

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """Answer `requests` in one batch; halve the batch where it does not fit into memory."""
        if self.settings.do_sample:  # draws that depend on the row alone, not on its neighbours in a batch
            for position, request in enumerate(requests):
                yield position, self._batch([request])[0]
            return
        start = 0
        while start < len(requests):
            answers = self._fitting(requests[start : start + self._fits])
            yield from enumerate(answers, start)
            start += len(answers)

    def _fitting(self, requests: Sequence[Request]) -> list[str]:
        """Answer as many of `requests`, from the first on, as fit into memory."""
        import torch

        while True:
            try:
                return self._batch(requests)
            except torch.cuda.OutOfMemoryError as error:
                if len(requests) == 1:
                    raise UniDPOError(
                        "one row alone does not fit into the device's memory; lower max_pixels or max_new_tokens"
                    ) from error
            torch.cuda.empty_cache()
            self._fits = len(requests) // 2
            requests = requests[: self._fits]

    def _batch(self, requests: Sequence[Request]) -> list[str]:
        import torch

        inputs = self._inputs(requests)
        if self.settings.do_sample:
            torch.manual_seed(self.settings.seed + zlib.crc32(str(requests[0].prompt).encode()))
        with torch.inference_mode():
            output = self.model.generate(**inputs, **self._generation())
        answers = self.processor.tokenizer.batch_decode(
            output[:, inputs["input_ids"].shape[1] :],
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return list(answers)

    def _inputs(self, requests: Sequence[Request]) -> Any:
        patch = self.processor.image_processor.patch_size
        images: list[Any] = []
        videos: list[Any] = []
        told: dict[str, Any] = {}
        for request in requests:
            more_images, more_videos, more_told = load_vision(request.content, patch)
            images += more_images
            videos += more_videos
            for key, value in more_told.items():
                told[key] = told.get(key, []) + value if isinstance(value, list) else value
        inputs = self.processor(
            text=[request.prompt for request in requests],
            images=images or None,
            videos=videos or None,
            padding=True,
            return_tensors="pt",
            **told,
        )
        return inputs.to(self.model.device)

    def _generation(self) -> dict[str, Any]:
        settings = self.settings
        drawn = {"temperature": None, "top_p": None, "top_k": None} | settings.sampling()
        return {
            "max_new_tokens": settings.max_new_tokens,
            "do_sample": settings.do_sample,
            "num_beams": 1,
            "pad_token_id": self.processor.tokenizer.pad_token_id,
            "repetition_penalty": settings.repetition_penalty,
            **drawn,
        }


def _load(checkpoint: Checkpoint, settings: ModelSettings) -> Any:
    import transformers
    from packaging.version import Version

    device = settings.device or best_device()
    dtype = _dtype(settings.dtype, device)
    dtype_name = "dtype" if Version(transformers.__version__) >= Version("4.56") else "torch_dtype"
    try:
        model = transformers.AutoModelForImageTextToText.from_pretrained(
            checkpoint.base,
            attn_implementation=settings.attn_implementation or best_attention(device, str(dtype)),
            trust_remote_code=settings.trust_remote_code,
            **{dtype_name: dtype},
            **({"device_map": settings.device_map} if settings.device_map else {}),
        )
        if checkpoint.adapter is not None:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, str(checkpoint.adapter)).merge_and_unload()
        return (model if settings.device_map else model.to(device)).eval()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        raise UniDPOError(f"cannot load {checkpoint.adapter or checkpoint.base}: {error}") from error


def best_device() -> str:
    """The accelerator of this process, or the CPU.

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
    """FlashAttention where it imports and can run, PyTorch's own fused attention elsewhere."""
    if device.startswith("cuda") and "16" in dtype:
        try:
            import flash_attn  # noqa: F401
        except ImportError:
            return "sdpa"
        return "flash_attention_2"
    return "sdpa"


def _dtype(name: str | None, device: str) -> Any:
    import torch

    if name is not None:
        dtype = getattr(torch, name, None)
        if not isinstance(dtype, torch.dtype):
            raise UniDPOError(f"dtype is {name!r}; it can be float32, bfloat16 or float16")
        return dtype
    if device == "cpu":
        return torch.float32
    if device.startswith("cuda") and not torch.cuda.is_bf16_supported():
        return torch.float16
    return torch.bfloat16
