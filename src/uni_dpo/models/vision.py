"""Pixels of a request: as `qwen_vl_utils` resizes them where items carry their own limits, else as they are."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from uni_dpo.errors import UniDPOError

if TYPE_CHECKING:
    from uni_dpo.models.backends.base import Request

QWEN2_PATCH = 14
"""Pixels per side of an image patch in Qwen2-VL and Qwen2.5-VL; Qwen3-VL has 16."""


def load_pixels(request: "Request", patch: int = QWEN2_PATCH) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Load what a request shows; see `load_vision`.

    Raises:
        UniDPOError: an image cannot be read.
    """
    if request.content:
        return load_vision(request.content, patch)
    return [open_image(path) for path in request.images], [], {}


def patch_of(processor: Any) -> int:
    """Pixels per side of an image patch, as Qwen's processors tell it; others size images by themselves."""
    return int(getattr(getattr(processor, "image_processor", None), "patch_size", None) or QWEN2_PATCH)


def open_image(path: str) -> Any:
    """Open an image file as RGB.

    Raises:
        UniDPOError: it cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UniDPOError(f"image {path} cannot be read: {error}") from error


def png_url(image: Any) -> str:
    """Write an image as a `data:` address."""
    packed = io.BytesIO()
    image.save(packed, format="PNG")
    return "data:image/png;base64," + base64.b64encode(packed.getvalue()).decode()


def load_vision(
    content: Sequence[Mapping[str, Any]], patch: int = QWEN2_PATCH
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Load what content items show.

    Args:
        content: the request's items; images and videos carry their own pixel limits.
        patch: pixels per side of the model's image patch.

    Returns:
        The images, the videos, and what the processor must be told of the videos.
    """
    from qwen_vl_utils import process_vision_info

    conversation = [{"role": "user", "content": [dict(item) for item in content]}]
    if patch == QWEN2_PATCH:
        images, videos = process_vision_info(conversation)
        return images or [], videos or [], {}
    images, videos, told = process_vision_info(
        conversation, image_patch_size=patch, return_video_kwargs=True, return_video_metadata=True
    )
    if not videos:
        return images or [], [], {}
    frames, metadata = zip(*videos, strict=True)
    return images or [], list(frames), {**told, "video_metadata": list(metadata)}
