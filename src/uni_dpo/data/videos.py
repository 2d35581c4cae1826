"""Whether a video is there, whether it can be shown to a model, and which frames of it LlamaFactory shows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

from uni_dpo.data.faults import shown
from uni_dpo.data.image_state import BrokenImageError, ImageLimits, MediaState
from uni_dpo.data.images import ImageChecker, ImagePaths
from uni_dpo.data.pair import is_image

Video = str | tuple[str, ...]
"""The path of a file, or those of the frames."""
DECODER = "av"
"""The package that LlamaFactory opens videos with."""
_COUNTED = 10_000
"""Frames that are counted, at most, of a file that does not tell how many it has."""


FRAME = ImageLimits(256 * 256, 16 * 16, processor_max=28 * 28 * 768, processor_min=128 * 28 * 28)
"""How LlamaFactory and a Qwen2-VL processor size a frame where nothing else is set."""


@dataclass(frozen=True)
class VideoLimits:
    """How LlamaFactory samples and sizes videos for Qwen2-VL.

    Attributes:
        fps: LlamaFactory's `video_fps`, frames taken per second.
        most: LlamaFactory's `video_maxlen`, frames taken at most; of frames that the row names all are taken.
    """

    fps: float = 2.0
    most: int = 128
    frame: ImageLimits = FRAME

    def taken(self, video: MediaState) -> int:
        """Tell how many frames a model is shown; an odd one out is shown twice."""
        taken = video.frames if video.listed else self._count(video.frames, video.seconds)
        return taken + taken % 2

    def places(self, frames: int, seconds: float | None) -> list[int]:
        """Tell which frames of a file are taken, from 0.

        Args:
            frames: how many it has; where it does not tell, the first ones are taken, as many as there may be.
            seconds: how long it is; None where it does not tell how many frames it has.
        """
        import numpy as np

        last = frames if seconds is not None else min(frames, self.most)
        return [int(place) for place in np.linspace(0, last - 1, self._count(frames, seconds)).astype(np.int32)]

    def _count(self, frames: int, seconds: float | None) -> int:
        wanted = self.most if seconds is None else max(1, math.floor(seconds * self.fps))
        return min(frames, self.most, wanted)

    def tokens(self, video: MediaState) -> int:
        """Tell how many tokens Qwen2-VL makes of a video: two frames are one."""
        return self.frame.tokens(video.width, video.height) * (self.taken(video) // 2)


def has_decoder() -> bool:
    """Tell whether video files can be opened here."""
    return find_spec(DECODER) is not None


class VideoChecker:
    """Checks videos, each path once, and remembers what it found; `whole` is as for `file_state`.

    `images` looks at frames that a row names one by one; its paths lead to videos too.
    """

    def __init__(self, images: ImageChecker, *, whole: bool = False) -> None:
        self.images, self._whole = images, whole
        self._known: dict[str, MediaState] = {}

    def state(self, video: Any) -> MediaState:
        """Return what is known of a video: a path, or a list of its frames."""
        if not isinstance(video, str):
            try:
                return self._frames(video)
            except BrokenImageError as broken:
                return _broken(broken)
        if video not in self._known:
            self._known[video] = file_state(video, self.images.paths, whole=self._whole)
        return self._known[video]

    def _frames(self, video: Any) -> MediaState:
        check_listed(video)
        states = self.images.states(video)
        for at, state in enumerate(states):
            if state.kind:
                raise BrokenImageError("frame", f"frame {at}: {state.found}", state.advice)
        check_sizes([(state.width, state.height) for state in states])
        return MediaState(states[0].width, states[0].height, len(states), listed=True)


def check_listed(video: Any) -> None:
    """Refuse a video which is no path and no list of images, or an empty one."""
    if not isinstance(video, list | tuple) or not all(map(is_image, video)):
        advice = "write the path of a video file, or a list of the paths of its frames"
        raise BrokenImageError("type", "null" if video is None else shown(video), advice)
    if not video:
        raise BrokenImageError("empty", "a list without a frame", "name its frames, or remove the row")


def check_sizes(sizes: Sequence[tuple[int, int]]) -> None:
    """Refuse frames of different widths and heights: those of a video go through a model as one."""
    first = sizes[0]
    for at, size in enumerate(sizes):
        if size != first:
            found = f"frame {at} has {size[0]} × {size[1]} pixels, frame 0 has {first[0]} × {first[1]}"
            raise BrokenImageError("frame", found, "give all frames of a video one size")


def file_state(path: str, paths: ImagePaths, *, whole: bool = False) -> MediaState:
    """Return what is known of a video file: it is opened, its first frame decoded, and its others counted.

    With `whole` all frames are decoded, as training does. That takes long, and finds damage within a file.
    """
    try:
        file = paths.find(path)
        if file.stat().st_size == 0:
            raise BrokenImageError("zero", f"{path} has zero bytes", "fetch it again")
        return _opened(file, path, whole)
    except BrokenImageError as broken:
        return _broken(broken)
    except Exception as error:  # a decoder's own error on a broken file may be of any class
        found = f"{path} cannot be opened as a video ({getattr(error, 'strerror', None) or error})"
        return MediaState(kind="video_unreadable", found=found, advice="fetch or convert it again")


def _broken(broken: BrokenImageError) -> MediaState:
    kind, advice = broken.kind.replace("image", "video"), broken.advice.replace("image", "video")
    return MediaState(kind=kind, found=broken.found, advice=advice.replace("an video", "a video"))


def _opened(file: Path, name: str, whole: bool) -> MediaState:
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
            return MediaState(width, height, 1 + sum(1 for _ in islice(frames, _COUNTED - 1)))
        if whole:
            there = 1 + sum(1 for _ in frames)
        else:
            container.seek(0)
            there = sum(bool(packet.size) for packet in container.demux(stream))
        if there < told:  # training looks for the last one
            found = f"{name} says that it has {told:,} frames, and has {there:,}"
            raise BrokenImageError("cut", found, "fetch or convert it again")
        return MediaState(width, height, told, float(stream.duration * stream.time_base))


@dataclass(frozen=True)
class Frames:
    """What a model is shown of a video: Pillow's images, RGB, of the size that LlamaFactory gives them.

    When each is shown, and how long the video is, stands there in seconds.
    """

    pictures: list[Any]
    times: list[float]
    seconds: float


def read_frames(video: Video, limits: VideoLimits) -> Frames:
    """Take the frames of a video that LlamaFactory's training takes, as large as it takes them.

    Raises:
        OSError, ValueError: a file cannot be read (those of `av` are among them).
    """
    from PIL import Image

    if not isinstance(video, str):
        pictures = [_sized(Image.open(frame), limits.frame) for frame in video]
        return Frames(pictures, [at / limits.fps for at in range(len(pictures))], len(pictures) / limits.fps)
    import av

    opened: Any = av.open(video, "r")
    with opened as container:
        stream: Any = next(stream for stream in container.streams if stream.type == "video")
        seconds = float(stream.duration * stream.time_base) if stream.frames else None
        places = limits.places(stream.frames or limits.most, seconds)
        decoded = enumerate(islice(container.decode(stream), places[-1] + 1))
        pictures = [_sized(frame.to_image(), limits.frame) for at, frame in decoded if at in places]
        rate = float(stream.average_rate)
    times = [place / rate for place in places[: len(pictures)]]
    return Frames(pictures, times, len(pictures) / limits.fps if seconds is None else seconds)


def _sized(picture: Any, limits: ImageLimits) -> Any:
    size = limits.fitted(picture.width, picture.height)
    return (picture if size == picture.size else picture.resize(size)).convert("RGB")
