"""What a user may set for a model: the keys of its entry in `config.json`."""

import dataclasses
import math
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from uni_dpo.errors import UniDPOError, did_you_mean
from uni_dpo.models.backends.base import Sampling
from uni_dpo.models.loading import check_dtype
from uni_dpo.models.prompt import parse_style

BACKENDS = ("transformers", "vllm", "openai")


@dataclass(frozen=True)
class ModelSettings:
    """One model, as VLMEvalKit's `Qwen2VLChat` takes it, with what this adapter adds.

    Names and defaults are VLMEvalKit's, but for sampling: this adapter is greedy unless `do_sample` is set.
    """

    model_path: str
    """Folder or hub name; for `openai` the name under which the server knows the model."""
    adapter: str | None = None
    """A LoRA adapter to lay on `model_path`."""
    backend: str = "transformers"
    prompt_style: str = "auto"
    min_pixels: int | None = None
    max_pixels: int | None = None
    total_pixels: int | None = None
    max_new_tokens: int = 2048
    do_sample: bool = False
    temperature: float = 0.01
    top_p: float = 0.001
    top_k: int = 1
    repetition_penalty: float = 1.0
    seed: int = 0
    """Of the draws when `do_sample` is set."""
    use_custom_prompt: bool = True
    """Word each benchmark's question as VLMEvalKit words it for Qwen2-VL."""
    system_prompt: str | None = None
    post_process: bool = False
    """Keep only what stands in the answer's last `\\boxed{…}`."""
    verbose: bool = False
    fps: float | None = 2
    nframe: int | None = 128
    device: str | None = None
    dtype: str | None = None
    attn_implementation: str | None = None
    device_map: str | None = None
    """Spread one model over several devices (`auto`) instead of placing it on one."""
    trust_remote_code: bool = False
    base_url: str | None = None
    """Of an OpenAI-compatible server, up to and with `/v1`."""
    concurrency: int = 16
    """Requests at once to that server."""
    timeout: float = 600
    """Seconds that one such request may take."""
    join_parts: bool = False
    """Take the text parts of an answer of that server that is a list of parts together."""
    gpu_utils: float | None = None
    """VLMEvalKit's name for the share of a GPU's memory that vLLM may take."""
    vllm: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """More arguments for `vllm.LLM`."""

    @classmethod
    def parse(cls, options: Mapping[str, Any], where: str = "model") -> Self:
        """Check the entry of one model and fill in the rest.

        Args:
            options: keys and values as they stand in the file; `class` and VLMEvalKit's `use_vllm` are understood.
            where: what an error calls the entry.

        Raises:
            UniDPOError: an unknown key, a value of another type, or no `model_path`.
        """
        given = {key: value for key, value in options.items() if key != "class"}
        if given.pop("use_vllm", False):
            given["backend"] = "vllm"
        types = typing.get_type_hints(cls)
        for key, value in given.items():
            if key not in types:
                raise UniDPOError(f"{where}: unknown key {key!r}{did_you_mean(key, types)}")
            if not _fits(value, types[key]):
                raise UniDPOError(f"{where}: {key} is {value!r}, which is not {_spoken(types[key])}")
            if isinstance(value, float) and not math.isfinite(value):
                raise UniDPOError(f"{where}: {key} is {value!r}, which is not a finite number")
        if not given.get("model_path"):
            raise UniDPOError(f"{where}: no model_path")
        settings = cls(**given)
        settings._check(where)
        return settings

    def _check(self, where: str) -> None:
        parse_style(self.prompt_style)
        check_dtype(self.dtype, f"{where}: ")
        if self.backend not in BACKENDS:
            raise UniDPOError(f"{where}: backend is {self.backend!r}; it can be {', '.join(BACKENDS)}")
        if self.backend == "openai" and not self.base_url:
            raise UniDPOError(f"{where}: backend openai needs base_url, such as http://localhost:8000/v1")
        if self.max_new_tokens < 1 or self.concurrency < 1:
            raise UniDPOError(f"{where}: max_new_tokens and concurrency must be at least 1")
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise UniDPOError(f"{where}: min_pixels {self.min_pixels} is above max_pixels {self.max_pixels}")

    def sampling(self) -> Sampling:
        """Give the settings of the draws; greedy unless `do_sample` is set."""
        shared: dict[str, Any] = {"max_tokens": self.max_new_tokens, "repetition_penalty": self.repetition_penalty}
        if not self.do_sample:
            return Sampling(temperature=0.0, **shared)
        return Sampling(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k, **shared)

    def identity(self) -> dict[str, Any]:
        """The settings on which an answer can depend: the others (speed, verbosity) leave it as it is."""
        speed_only = {"verbose", "concurrency", "timeout", "model_path", "adapter", "gpu_utils"}
        return {
            name: dict(value) if isinstance(value, Mapping) else value
            for name, value in vars(self).items()
            if name not in speed_only and not (name == "join_parts" and not value)
        }


def _fits(value: object, expected: Any) -> bool:
    allowed = typing.get_args(expected) if typing.get_origin(expected) is not Mapping else (dict,)
    allowed = allowed or (expected,)
    if isinstance(value, bool):
        return bool in allowed
    return isinstance(value, allowed) or (isinstance(value, int) and float in allowed)


def _spoken(expected: Any) -> str:
    return {"str": "a text", "int": "a whole number", "float": "a number", "bool": "true or false"}.get(
        str(getattr(expected, "__name__", "")),
        str(expected).replace(" | None", " or null"),
    )
