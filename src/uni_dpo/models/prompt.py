"""What is asked, as a model takes it: words by its chat template, and pixels at the sizes that it wants."""

import base64
import io
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Literal

from uni_dpo.data.videos import Video, VideoLimits, read_frames
from uni_dpo.errors import UniDPOError

if TYPE_CHECKING:
    from uni_dpo.models.backends.base import Request


Content = Sequence[Mapping[str, Any]]
"""Items `{"type": "image" | "video", …}` and `{"type": "text", "text": …}`, in the order of the prompt."""


class PromptStyle(StrEnum):
    """How a checkpoint's chat template takes its input."""

    INSTRUCT = "instruct"
    """Messages with roles."""
    BASE = "base"
    """Bare content items."""


_PROBE: Content = (
    {"type": "image", "image": "probe.png"},
    {"type": "image", "image": "probe.png"},
    {"type": "text", "text": "Is the left picture the older one?"},
)


def sees_images(processor: Any) -> bool:
    """Tell a vision-language model's processor from a text model's tokenizer."""
    return hasattr(processor, "image_processor")


def style_of(processor: Any, wanted: Literal["auto", "instruct", "base"], name: str = "the checkpoint") -> PromptStyle:
    """Return the style that a user named, or for `auto` the one that `detect_style` finds."""
    return detect_style(processor, name) if wanted == "auto" else PromptStyle(wanted)


def detect_style(processor: Any, name: str = "the checkpoint") -> PromptStyle:
    """Find the style in which the chat template of `processor`, or of a text model's tokenizer, keeps what is asked.

    Raises:
        UniDPOError: neither style does.
    """
    probe = _PROBE if sees_images(processor) else _PROBE[-1:]
    lost = {}
    for style in PromptStyle:
        try:
            reason = what_is_lost(processor, probe, render(processor, probe, style))
        except Exception as error:  # a template may raise anything, in words of its own
            reason = f"the template fails: {error}"
        if reason is None:
            return style
        lost[style] = reason
    tried = "; ".join(f"{style}: {reason}" for style, reason in lost.items())
    raise UniDPOError(f"{name}: its chat template loses the question or the images ({tried})")


def render(processor: Any, content: Content, style: PromptStyle, system: str | None = None) -> str:
    """Render one user turn; see `render_turns`."""
    return render_turns(processor, [content], style, system)


def render_turns(processor: Any, turns: Sequence[Content], style: PromptStyle, system: str | None = None) -> str:
    """Render a conversation, up to where the next answer starts.

    Args:
        processor: the checkpoint's processor, with its chat template; the tokenizer of a text model.
        turns: the items of each turn: the user's, the model's, the user's …; the last one is the user's. A base
            template knows no turns and gets their items in a row, a line break behind each turn.
        style: what the template takes.
        system: a system prompt, or `None` for what the template does by itself.
    """
    template = getattr(processor, "chat_template", None) or _tokenizer(processor).chat_template
    if style is PromptStyle.BASE:
        items = [{"type": "text", "text": system}] if system is not None else []
        for number, turn in enumerate(turns):
            items += [{"type": "text", "text": "\n"}] if number else []
            items += map(dict, turn)
        if template is None:
            return "".join(_spelt(processor, item) for item in items)
        conversation = items
    else:
        conversation = [{"role": "system", "content": system}] if system is not None else []
        for number, turn in enumerate(turns):
            said: Any = [*map(dict, turn)] if sees_images(processor) else "".join(item["text"] for item in turn)
            conversation.append({"role": "assistant" if number % 2 else "user", "content": said})
    return str(
        _tokenizer(processor).apply_chat_template(
            conversation, chat_template=template, tokenize=False, add_generation_prompt=True
        )
    )


def prompt_of(processor: Any, content: Content, style: PromptStyle, system: str | None = None) -> str:
    """Render `content`; see `render`.

    Raises:
        UniDPOError: the rendered prompt does not hold the texts and a placeholder per image and video, or a text
            holds a placeholder itself.
    """
    prompt = render(processor, content, style, system)
    texts = [item["text"] for item in content if item["type"] == "text"]
    for token in filter(None, (placeholder(processor, kind) for kind in ("image", "video"))):
        if held := [text for text in texts if token in text]:
            raise UniDPOError(f"the question {held[0][:200]!r} holds {token}, which stands for pixels; take it out")
    reason = what_is_lost(processor, content, prompt)
    if reason is None and system is not None and system.strip() not in prompt:
        reason = "the system prompt is not in the prompt"
    if reason is not None:
        raise UniDPOError(f"prompt style {style} does not suit this checkpoint: {reason}")
    return prompt


def what_is_lost(processor: Any, content: Content, prompt: str) -> str | None:
    """Tell why `prompt` is not a faithful rendering of `content`; `None` when it is."""
    for kind in ("image", "video"):
        given = sum(item["type"] == kind for item in content)
        token = placeholder(processor, kind)
        if token is None and given:
            return f"the model takes no {kind}s"
        found = prompt.count(token) if token is not None else 0
        if found != given:
            return f"{found} {kind} placeholders for {given} {kind}s"
    for item in content:
        if item["type"] == "text" and item["text"].strip() not in prompt:
            return "the question is not in the prompt"
    return None


def placeholder(processor: Any, kind: str) -> str | None:
    """Return what stands for an `image` or `video` in a prompt; None where the model takes none."""
    # Gemma 3 puts the tokens of an image, and a frame for them, in place of the token that begins it.
    begins = kind == "image" and hasattr(processor, "full_image_sequence")
    return getattr(processor, "boi_token" if begins else f"{kind}_token", None)


def by_request(processor: Any, images: Sequence[list[Any]]) -> list[Any]:
    """Return the images of several requests as a processor takes them: those of Gemma 3 and 4 ask whose each is."""
    return list(images) if hasattr(processor, "boi_token") else [image for shown in images for image in shown]


def _tokenizer(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def _spelt(processor: Any, item: Mapping[str, Any]) -> str:
    if item["type"] == "text":
        return str(item["text"])
    token = placeholder(processor, item["type"])
    return f"<|vision_start|>{token}<|vision_end|>"


QWEN2_PATCH = 14
"""Pixels per side of an image patch in Qwen2-VL and Qwen2.5-VL; Qwen3-VL has 16."""


def load_pixels(
    request: "Request", patch: int = QWEN2_PATCH, limits: VideoLimits | None = None
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Load what a request shows (see `load_vision`), of videos the frames that LlamaFactory's training takes.

    Raises:
        UniDPOError: an image or a video cannot be read.
    """
    if request.content:
        return load_vision(request.content, patch)
    videos, told = _films(request.videos, limits or VideoLimits()) if request.videos else ([], {})
    return [open_image(path) for path in request.images], videos, told


def _films(videos: Sequence[Video], limits: VideoLimits) -> tuple[list[Any], dict[str, Any]]:
    """The frames of videos, and what a processor must be told of them, as LlamaFactory's training tells it."""
    films, told = [], []
    for video in videos:
        try:
            frames = read_frames(video, limits)
        except Exception as error:  # a decoder's own error on a broken file may be of any class
            name = video if isinstance(video, str) else ", ".join(video)
            raise UniDPOError(f"video {name} cannot be read: {error}") from error
        films.append(frames.pictures)
        told.append(
            {
                "fps": limits.fps,
                "duration": frames.seconds,
                "total_num_frames": frames.seconds * limits.fps,
                "frames_indices": [time * limits.fps for time in frames.times],
            }
        )
    return films, {"video_metadata": told, "do_sample_frames": False}


def patch_of(processor: Any) -> int:
    """Return pixels per side of an image patch, as Qwen's processors tell it; others size images by themselves."""
    return int(getattr(getattr(processor, "image_processor", None), "patch_size", None) or QWEN2_PATCH)


def open_image(path: str) -> Any:
    """Open an image file as RGB, as training sees it.

    Raises:
        UniDPOError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            pixels = image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UniDPOError(f"image {path} cannot be read: {error}") from error
    return _unturned(pixels)


def _unturned(image: Any) -> Any:
    """An image without its EXIF orientation, which vLLM would apply, and training does not."""
    image.info.clear()
    return image


def png_url(image: Any) -> str:
    """Write an image as a `data:` address."""
    packed = io.BytesIO()
    image.save(packed, format="PNG")
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


def load_vision(
    content: Sequence[Mapping[str, Any]], patch: int = QWEN2_PATCH
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Load what content items show, within their own pixel limits.

    Returns:
        The images, the videos, and what the processor must be told of the videos.
    """
    from qwen_vl_utils import process_vision_info

    told = {"return_video_kwargs": True, "return_video_metadata": True}
    more = {} if patch == QWEN2_PATCH else {"image_patch_size": patch, **told}
    images, videos, *kwargs = process_vision_info([{"role": "user", "content": [*map(dict, content)]}], **more)
    shown = list(map(_unturned, images or ()))
    if not videos or not more:
        return shown, videos or [], {}
    frames, metadata = zip(*videos, strict=True)
    return shown, list(frames), {**kwargs[0], "video_metadata": list(metadata)}
