"""Pixels of a request, loaded and resized as Qwen's own `qwen_vl_utils` does it."""

from collections.abc import Mapping, Sequence
from typing import Any

QWEN2_PATCH = 14
"""Pixels per side of an image patch in Qwen2-VL and Qwen2.5-VL; Qwen3-VL has 16."""


def load_vision(
    content: Sequence[Mapping[str, Any]], patch: int = QWEN2_PATCH
) -> tuple[list[Any], list[Any], dict[str, Any]]:
    """Load what one request shows.

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
