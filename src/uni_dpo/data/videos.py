"""Whether a video is there, whether it can be shown to a model, and how much of it LlamaFactory shows."""

import math
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from uni_dpo.data.faults import shown
from uni_dpo.data.image_state import BrokenImageError, ImageLimits
from uni_dpo.data.images import ImageChecker
from uni_dpo.data.pair import is_image

DECODER = "av"
"""The package that LlamaFactory opens videos with."""
_COUNTED = 10_000
"""Frames that are counted, at most, of a file that does not tell how many it has."""


FRAME = ImageLimits(256 * 256, 16 * 16, processor_max=28 * 28 * 768, processor_min=128 * 28 * 28)
"""How LlamaFactory and a Qwen2-VL processor size a frame where nothing else is set."""


@dataclass(frozen=True, slots=True)
class VideoState:
    """What is known of one video, or (`kind` is set) what is wrong with it.

    Attributes:
        width: pixels.
        height: pixels.
        frames: how many it has.
        seconds: how long it is; None where the row names its frames, or the file does not tell how many it has.
        listed: whether the row names its frames.
    """

    width: int = 0
    height: int = 0
    frames: int = 0
    seconds: float | None = None
    listed: bool = False
    kind: str = ""
    found: str = ""
    advice: str = ""


@dataclass(frozen=True)
class VideoLimits:
    """How LlamaFactory samples and sizes videos for Qwen2-VL.

    Attributes:
        fps: LlamaFactory's `video_fps`, frames taken per second.
        most: LlamaFactory's `video_maxlen`, frames taken at most; of frames that the row names all are taken.
        frame: how a frame is sized.
    """

    fps: float = 2.0
    most: int = 128
    frame: ImageLimits = FRAME

    def taken(self, video: VideoState) -> int:
        """Tell how many frames a model is shown; an odd one out is shown twice."""
        taken = video.frames
        if video.seconds is not None:
            taken = min(taken, self.most, max(1, math.floor(video.seconds * self.fps)))
        elif not video.listed:
            taken = min(taken, self.most)
        return taken + taken % 2

    def tokens(self, video: VideoState) -> int:
        """Tell how many tokens Qwen2-VL makes of a video: two frames are one."""
        return self.frame.tokens(video.width, video.height) * (self.taken(video) // 2)


def has_decoder() -> bool:
    """Tell whether video files can be opened here."""
    return find_spec(DECODER) is not None


class VideoChecker:
    """Checks videos, each path once, and remembers what it found.

    A file is opened and its first frame decoded, not all of it.

    Args:
        images: looks at frames that a row names one by one; its paths lead to videos too.
    """

    def __init__(self, images: ImageChecker) -> None:
        self._images = images
        self._known: dict[str, VideoState] = {}

    def state(self, video: Any) -> VideoState:
        """Return what is known of a video: a path, or a list of its frames."""
        try:
            if isinstance(video, str):
                if video not in self._known:
                    self._known[video] = self._file(video)
                return self._known[video]
            return self._frames(video)
        except BrokenImageError as broken:
            kind, advice = broken.kind.replace("image", "video"), broken.advice.replace("image", "video")
            return VideoState(kind=kind, found=broken.found, advice=advice.replace("an video", "a video"))

    def _frames(self, video: Any) -> VideoState:
        if not isinstance(video, list) or not all(map(is_image, video)):
            advice = "write the path of a video file, or a list of the paths of its frames"
            raise BrokenImageError("type", "null" if video is None else shown(video), advice)
        if not video:
            raise BrokenImageError("empty", "a list without a frame", "name its frames, or remove the row")
        states = self._images.states(video)
        for at, state in enumerate(states):
            if state.kind:
                raise BrokenImageError("frame", f"frame {at}: {state.found}", state.advice)
        return VideoState(states[0].width, states[0].height, len(states), listed=True)

    def _file(self, path: str) -> VideoState:
        file = self._images.paths.find(path)
        if file.stat().st_size == 0:
            raise BrokenImageError("zero", f"{path} has zero bytes", "fetch it again")
        try:
            return _opened(file, path)
        except BrokenImageError as broken:
            return VideoState(kind=broken.kind.replace("image", "video"), found=broken.found, advice=broken.advice)
        except Exception as error:  # a decoder's own error on a broken file may be of any class
            found = f"{path} cannot be opened as a video ({error})"
            return VideoState(kind="video_unreadable", found=found, advice="fetch or convert it again")


def _opened(file: Path, name: str) -> VideoState:
    import av

    opened: Any = av.open(str(file), "r")
    with opened as container:
        stream: Any = next((stream for stream in container.streams if stream.type == "video"), None)
        if stream is None:
            raise BrokenImageError("not_a_video", f"{name} holds no pictures", "name a video file, or fetch it again")
        frames = container.decode(stream)
        first = next(frames, None)
        if first is None:
            raise BrokenImageError("empty", f"{name} has no frame", "fetch it again, or remove the row")
        width, height, told = first.width, first.height, stream.frames
        if told and (stream.duration is None or stream.time_base is None or not stream.average_rate):
            raise BrokenImageError("unreadable", f"{name} does not tell how long it is", "convert it to MP4")
        if not told:
            return VideoState(width, height, 1 + sum(1 for _ in islice(frames, _COUNTED - 1)))
        return VideoState(width, height, told, float(stream.duration * stream.time_base))
