"""VLMEvalKit's `Qwen2VLChat` and `Qwen3VLChat` for any device, any backend, base as well as instruct checkpoints.

VLMEvalKit's classes assert an NVIDIA GPU and FlashAttention 2, and prompt every checkpoint with role
messages. These keep their per-benchmark questions, their pixel limits and their handling of videos, and
replace how the model is loaded, prompted and run.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from vlmeval.vlm.qwen2_vl.model import Qwen2VLChat as _UpstreamChat
from vlmeval.vlm.qwen2_vl.prompt import Qwen2VLPromptMixin
from vlmeval.vlm.qwen3_vl.model import Qwen3VLChat as _Upstream3Chat
from vlmeval.vlm.qwen3_vl.prompt import Qwen3VLPromptMixin

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Backend, Failure, Request, Sample, make_backend
from uni_dpo.models.checkpoint import QWEN_FAMILIES, Checkpoint, find_checkpoint
from uni_dpo.models.prompt import PromptStyle, prompt_of, style_of
from uni_dpo.storage.identity import derive_seed
from uni_dpo.vlmeval.config import ModelSettings

Message = Sequence[Mapping[str, str]]
"""VLMEvalKit's message: items with `type` (text, image or video) and `value`."""
MOST_IMAGES = 24
"""Images that VLMEvalKit lets one vLLM prompt hold."""
SERVER_RETRIES = 3
UPSTREAM_NAMES = (
    "model_path", "min_pixels", "max_pixels", "total_pixels", "max_new_tokens", "system_prompt", "post_process",
    "verbose", "fps", "nframe",
)  # fmt: skip
"""The settings that inherited methods and VLMEvalKit's loops look for."""


class Qwen2VLChat(_UpstreamChat):
    """Loads Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5 by the checkpoint's own `config.json`.

    The constructor finds the checkpoint and settles the prompt style; weights are loaded at once, as
    VLMEvalKit expects, or with the first answer when `lazy` is set.
    """

    class_name = "Qwen2VLChat"

    def __init__(self, model_path: str, *positional: Any, lazy: bool = False, **options: Any) -> None:
        """Take VLMEvalKit's arguments and those of `ModelSettings`.

        Raises:
            UniDPOError: the checkpoint is missing or not a Qwen vision-language model, an argument is wrong,
                or the checkpoint's template loses question or images.
        """
        first = dict(zip(("min_pixels", "max_pixels", "total_pixels", "max_new_tokens"), positional, strict=False))
        settings = ModelSettings.parse({"model_path": model_path, "class": self.class_name, **first, **options})
        # Upstream's own __init__ asserts a GPU; only its prompt part applies here.
        Qwen2VLPromptMixin.__init__(self, use_custom_prompt=settings.use_custom_prompt)
        self.settings = settings
        for name in UPSTREAM_NAMES:
            setattr(self, name, getattr(settings, name))
        self.FRAME_FACTOR, self.use_audio_in_video, self.use_lmdeploy = 2, False, False
        self.use_vllm = settings.backend == "vllm"
        self.checkpoint: Checkpoint | None = None
        self.processor: Any = None
        self.style: PromptStyle | None = None
        if settings.backend != "openai":
            from uni_dpo.models.loading import load_processor

            self.checkpoint = find_checkpoint(settings.model_path, settings.adapter).of(QWEN_FAMILIES)
            self.processor = load_processor(self.checkpoint, trust_remote_code=settings.trust_remote_code)
            self.style = style_of(self.processor, settings.prompt_style)
        self._backend: Backend | None = None
        if not lazy:
            _ = self.backend

    @property
    def backend(self) -> Backend:
        """What answers; loaded when first asked for."""
        if self._backend is None:
            self._backend = _make_backend(self)
        return self._backend

    def request(self, message: Message, dataset: str | None = None) -> Request:
        """Turn VLMEvalKit's message into what a backend takes.

        Raises:
            UniDPOError: the rendered prompt would not hold the question and a placeholder per image.
        """
        content = self._prepare_content([dict(item) for item in message], dataset=dataset)
        for item in content:  # OCRBench's floor may lie above the user's ceiling
            if "min_pixels" in item and item.get("max_pixels") is not None:
                item["min_pixels"] = min(item["min_pixels"], item["max_pixels"])
        if self.style is not None:
            prompt_of(self.processor, content, self.style, self.system_prompt)  # raises where it loses something
        seed = derive_seed(self.settings.seed, *map(str, content))
        return Request(seed=seed, system=self.system_prompt, content=tuple(content))

    def answers(self, messages: Sequence[Message], dataset: str | None = None) -> Iterator[tuple[int, Sample]]:
        """Yield `(position in messages, answer)` as answers come.

        Raises:
            UniDPOError: a message got no answer.
        """
        requests = [self.request(message, dataset) for message in messages]
        for position, reply in self.backend.stream(requests, self.settings.sampling()):
            if isinstance(reply, Failure):
                raise UniDPOError(f"{self.model_path} gave no answer: {reply.reason}")
            answer = reply[0]
            yield position, replace(answer, text=last_boxed(answer.text)) if self.post_process else answer

    def generate_inner(self, message: Message, dataset: str | None = None) -> str:
        """Answer one message: the call of VLMEvalKit's own loop."""
        ((_, answer),) = self.answers([message], dataset)
        if self.verbose:
            print(answer.text)
        return answer.text


class Qwen3VLChat(Qwen3VLPromptMixin, Qwen2VLChat):
    """The same checkpoints, with the questions and the pixel limits of VLMEvalKit's `Qwen3VLChat`."""

    class_name = "Qwen3VLChat"
    _prepare_content = _Upstream3Chat._prepare_content


def last_boxed(answer: str) -> str:
    """Return what stands in the last `\\boxed{…}` of an answer; the whole answer where there is none."""
    _, found, rest = answer.rpartition("\\boxed{")
    if not found:
        return answer
    depth = 1
    for position, character in enumerate(rest):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if depth == 0:
            return rest[:position]
    return rest


def _make_backend(model: Qwen2VLChat) -> Backend:
    settings = model.settings
    entry: dict[str, Any] = {"backend": settings.backend, "model": settings.model_path}
    if model.checkpoint is None:
        entry |= {name: getattr(settings, name) for name in ("base_url", "concurrency", "timeout", "join_parts")}
        return make_backend(entry | {"max_retries": SERVER_RETRIES})
    entry |= {"adapter": settings.adapter, "prompt_style": str(model.style), "dtype": settings.dtype}
    entry["trust_remote_code"] = settings.trust_remote_code
    if settings.backend == "vllm":
        memory = {} if settings.gpu_utils is None else {"gpu_memory_utilization": settings.gpu_utils}
        own = {"dtype": settings.dtype or "auto", "max_images": MOST_IMAGES, "more": {**memory, **settings.vllm}}
        return make_backend(entry | own)
    from uni_dpo.models.loading import best_attention, best_device, find_dtype

    entry["device"] = device = settings.device or best_device()
    attention = settings.attn_implementation or best_attention(device, str(find_dtype(settings.dtype, device)))
    entry |= {"device_map": settings.device_map, "attn_implementation": attention}
    return make_backend(entry | {"batch_size": sys.maxsize})  # the runner says how many go together
