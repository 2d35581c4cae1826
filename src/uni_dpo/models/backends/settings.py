"""Settings of the built-in backends, apart from their code: a config is checked without importing any of them."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import Ge

from uni_dpo.data.questions import Question
from uni_dpo.data.videos import FRAME, VideoLimits
from uni_dpo.errors import UniDPOError
from uni_dpo.models.rewards.options import ProcessModelOptions, RewardModelOptions
from uni_dpo.settings.options import Count, Dtype, NotNegative, Positive, TopP, added, runtime


@dataclass(frozen=True)
class TransformersOptions:
    """Settings of a `transformers` model.

    Attributes:
        model: folder or hub name of a checkpoint, or the folder of a LoRA adapter, which names its base.
        adapter: a LoRA adapter that lies on `model`.
        prompt_style: `instruct` for templates that take turns, `base` for those that take bare content items; `auto`
            finds out.
        dtype: `auto` is the checkpoint's own; None is what suits the device.
        quantization: `4bit` or `8bit` by bitsandbytes.
        min_pixels, max_pixels: limits of the image processor, where it has such.
        video_fps, video_maxlen, video_max_pixels, video_min_pixels: which frames of a video are taken, and how large,
            as training has them under these names.
        batch_size: sequences (answers, not questions) in one forward pass; halved where they do not fit into memory.
        device: `auto` takes the accelerator if there is one.
        device_map: spreads one model over several devices (`auto`) instead of placing it on one.
        trust_remote_code: run Python code that comes with the checkpoint.
    """

    model: str
    adapter: str | None = added(None)
    prompt_style: Literal["auto", "instruct", "base"] = added("auto")
    dtype: Dtype | None = "auto"
    quantization: Literal["4bit", "8bit"] | None = added(None)
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    attn_implementation: str | None = None
    trust_remote_code: bool = False
    video_fps: Positive = added(VideoLimits.fps)
    video_maxlen: Count = added(VideoLimits.most)
    video_max_pixels: Count = added(FRAME.max_pixels)
    video_min_pixels: Count = added(FRAME.min_pixels)
    batch_size: Count = runtime(64)
    device: str = runtime("auto")
    device_map: str | None = runtime(None)
    shows_videos: ClassVar[tuple[str, ...]] = ("file", "frames")

    def video_limits(self) -> VideoLimits:
        """Return which frames of a video are taken, and how large."""
        frame = replace(FRAME, max_pixels=self.video_max_pixels, min_pixels=self.video_min_pixels)
        return VideoLimits(self.video_fps, self.video_maxlen, frame)


@dataclass(frozen=True)
class OpenAIOptions:
    """Settings of an `openai` model.

    Attributes:
        model: its name on the server.
        base_url: of the server, up to `/v1`; None is OpenAI's own.
        api_key_env: the environment variable that holds the key. Local servers need none.
        token_limit_field: newer OpenAI models want `max_completion_tokens`; it is sent to servers that ask for it.
        send_temperature: false leaves temperature and top_p to a server that takes no other than its own.
        concurrency: requests in flight at once.
        timeout: seconds for one request.
        max_retries: further attempts after the first.
        backoff: seconds before the first retry; doubled for each further one, and jittered.
        requests_per_minute: at most this many, retries included.
        price_prompt, price_completion: per million tokens, for the report and `max_cost`.
        join_parts: take the text parts of an answer that is a list of parts together; such an answer is a fault
            otherwise, since the API has a text there.
    """

    model: str
    base_url: str | None = runtime(None)
    api_key_env: str = runtime("OPENAI_API_KEY")
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = runtime("max_tokens")
    send_temperature: bool = added(True)
    concurrency: Count = runtime(8)
    timeout: Positive = runtime(120.0)
    max_retries: Annotated[int, Ge(0)] = runtime(5)
    backoff: NotNegative = runtime(1.0)
    requests_per_minute: Positive | None = runtime(None)
    price_prompt: NotNegative = runtime(0.0)
    price_completion: NotNegative = runtime(0.0)
    join_parts: bool = added(False)
    shows_videos: ClassVar[tuple[str, ...]] = ("file",)


@dataclass(frozen=True)
class VLLMOptions:
    """Settings of a `vllm` model; vLLM's documentation explains those that are its own.

    Attributes:
        model: folder of a checkpoint, or a name on the hub.
        prompt_style: as for `transformers`.
        max_images: images in one request, at most.
        min_pixels, max_pixels: limits of Qwen2-VL's image processor.
        more: further arguments of `vllm.LLM`.
    """

    model: str
    adapter: str | None = added(None)
    prompt_style: Literal["auto", "instruct", "base"] = added("auto")
    dtype: Dtype = "auto"
    max_images: Count = 1
    min_pixels: Count | None = None
    max_pixels: Count | None = None
    max_model_len: Count | None = None
    trust_remote_code: bool = False
    tensor_parallel_size: Count = runtime(1)
    gpu_memory_utilization: TopP = runtime(0.9)
    enforce_eager: bool = runtime(False)
    more: Mapping[str, Any] | None = added(None)


BUILT_IN = {
    "transformers": TransformersOptions,
    "openai": OpenAIOptions,
    "vllm": VLLMOptions,
    "reward_model": RewardModelOptions,
    "process_reward": ProcessModelOptions,
}
RATERS = ("reward_model", "process_reward")
"""Backends that rate answers and write none."""


def without_secrets(address: str) -> str:
    """Return an address, with or without its scheme, without what may hold a key: user, password, query, fragment."""
    return re.sub(r"(?s)^((?:[\w+.-]+:)?//)?[^/?#]*@|[?#].*", r"\1", address.strip())


def check_videos(backend: str, options: Any, questions: Sequence[Question]) -> None:
    """See that a model can be shown the videos of questions: `shows_videos` of its options says which.

    Raises:
        UniDPOError: it cannot; the first such question is named.
    """
    shows = getattr(options, "shows_videos", ())
    what = {"file": "a video", "frames": "a video as a list of frames"}
    for question in questions:
        for kind in ("file" if isinstance(video, str) else "frames" for video in question.videos):
            if kind not in shows:
                advice = "name its file" if "file" in shows else "write frames into `images`"
                raise UniDPOError(
                    f"{question.called}, field 'videos': {what[kind]}, which the backend {backend} does not show; "
                    f"{advice}, or take the backend transformers"
                )
