"""Where answers come from: three backends behind one call."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Request:
    """One question, ready to be answered."""

    content: Sequence[Mapping[str, Any]]
    """Qwen's content items: images and videos by path, with their pixel limits, and texts."""
    prompt: str | None
    """The rendered prompt with its vision placeholders; `None` where the server renders it."""
    system: str | None = None


class Backend(Protocol):
    """Answers requests."""

    @property
    def comfortable_batch(self) -> int:
        """Requests to hand over at once where the user has not said how many."""
        ...

    def generate(self, requests: Sequence[Request]) -> Iterator[tuple[int, str]]:
        """Yield `(position in requests, answer)`, in whatever order answers are finished."""
        ...
