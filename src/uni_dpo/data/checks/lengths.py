"""How many tokens a pair is for a Qwen2-VL checkpoint, and what `cutoff_len` would cut off.

Follows LlamaFactory 0.9.5's handling of images (`image_max_pixels`, `image_min_pixels`, then the processor's own
limits) and of long pairs: the longer of prompt and answer is cut.
"""

import re
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from uni_dpo.data.checks.audit import Spread
from uni_dpo.data.checks.rows import MEDIA_TOKENS, CheckedRow
from uni_dpo.data.image_state import ImageLimits
from uni_dpo.data.pair import PreferencePair
from uni_dpo.data.videos import VideoLimits
from uni_dpo.errors import UniDPOError
from uni_dpo.storage import read_json

_ROWS_AT_ONCE = 256
_DEFAULT_SYSTEM = "You are a helpful assistant."
"""What LlamaFactory's `qwen2_vl` template says where a row has no system prompt."""
_PLACE = "<|vision_start|><|vision_end|>"
MEDIA = re.compile("|".join(re.escape(MEDIA_TOKENS[medium]) for medium in ("images", "videos")))
"""What stands for an image or a video in a text."""


def model_limits(folder: str | Path, limits: ImageLimits) -> ImageLimits:
    """Return LlamaFactory's limits on images with a checkpoint's, by the processor files of transformers 4 or 5."""
    config = read_json(Path(folder) / "preprocessor_config.json")
    config = config or read_json(Path(folder) / "processor_config.json").get("image_processor", {})
    plain = {"longest_edge": config.get("max_pixels"), "shortest_edge": config.get("min_pixels")}
    return _processed(limits, config, plain)


def video_limits(folder: str | Path, limits: VideoLimits) -> VideoLimits:
    """Return LlamaFactory's limits on videos with a checkpoint's; see `model_limits`."""
    config = read_json(Path(folder) / "video_preprocessor_config.json")
    config = config or read_json(Path(folder) / "processor_config.json").get("video_processor", {})
    return replace(limits, frame=_processed(limits.frame, config, {}))


def _processed(limits: ImageLimits, config: Mapping[str, Any], edges: Mapping[str, Any]) -> ImageLimits:
    """The limits with those of a processor: `edges` go before what its `size` says."""
    size = config.get("size")
    size = (size if isinstance(size, dict) else {}) | {name: edge for name, edge in edges.items() if edge}
    patch, merge = config.get("patch_size", 14), config.get("merge_size", 2)
    return replace(
        limits,
        # other families than Qwen's have patches of two sides, or none
        side=patch * merge if isinstance(patch, int) and isinstance(merge, int) else limits.side,
        processor_max=int(size.get("longest_edge") or limits.processor_max),
        processor_min=int(size.get("shortest_edge") or limits.processor_min),
    )


def chat_text(pair: PreferencePair) -> str:
    """Return a pair's prompt in ChatML, up to where the answer starts."""
    turns = [("system", pair.system or _DEFAULT_SYSTEM)]
    for question, answer in pair.history:
        turns += [("user", question), ("assistant", answer)]
    turns.append(("user", pair.instruction))
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in turns) + "<|im_start|>assistant\n"


def kept_lengths(prompt: int, answer: int, cutoff_len: int) -> tuple[int, int]:
    """Tell how many tokens of prompt and answer LlamaFactory keeps within `cutoff_len`."""
    if 2 * answer < cutoff_len:
        room = cutoff_len
    elif 2 * prompt < cutoff_len:
        room = cutoff_len - prompt
    else:
        room = int(cutoff_len * (answer / (prompt + answer)))
    kept_answer = min(room, answer)
    return min(max(cutoff_len - kept_answer, 0), prompt), kept_answer


@dataclass(frozen=True)
class Lengths:
    """Tokens of the pairs, and the shares of pairs that `cutoff_len` would cut, or cut within an image or a video."""

    prompt: Spread
    image: Spread
    answer: Spread
    cutoff_len: int
    cut: float
    image_cut: float


class LengthCounter:
    """Counts the tokens of rows, some hundred at a time.

    Args:
        model: folder of a checkpoint with a tokenizer; nothing is downloaded and no code of its own is run.
        cutoff_len: LlamaFactory's limit on prompt and answer.
        images, videos: how LlamaFactory sizes images, and samples and sizes videos.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        cutoff_len: int,
        images: ImageLimits | None = None,
        videos: VideoLimits | None = None,
    ) -> None:
        from transformers import AutoTokenizer

        if not Path(model).is_dir():
            raise UniDPOError(f"{model}: no such folder; name a checkpoint that is on this machine")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise UniDPOError(f"{model}: its tokenizer cannot be loaded ({error})") from None
        self._limits = model_limits(model, images or ImageLimits())
        self._videos = video_limits(model, videos or VideoLimits())
        self._cutoff_len = cutoff_len
        self._waiting: list[tuple[PreferencePair, int]] = []
        self._prompt, self._image, self._answer = array("l"), array("l"), array("l")
        self._cut = self._image_cut = 0

    def add(self, row: CheckedRow) -> None:
        """Take in a row; rows with faults are left out."""
        if row.pairs and not row.faults:
            shown = sum(self._limits.tokens(state.width, state.height) for state in row.image_states)
            shown += sum(map(self._videos.tokens, row.video_states))
            self._waiting += [(pair, shown) for pair in row.pairs]
            if len(self._waiting) >= _ROWS_AT_ONCE:
                self._count()

    def result(self) -> Lengths:
        """Return the lengths of what was added."""
        self._count()
        pairs = max(1, len(self._prompt))
        prompt, image, answer = map(Spread.of, (self._prompt, self._image, self._answer))
        return Lengths(prompt, image, answer, self._cutoff_len, self._cut / pairs, self._image_cut / pairs)

    def _count(self) -> None:
        texts: list[str] = []
        for pair, _ in self._waiting:
            text = chat_text(pair)
            end = max((found.end() for found in MEDIA.finditer(text)), default=0)
            texts += [MEDIA.sub(_PLACE, text[:end]), text[end:], pair.chosen, pair.rejected]
        tokens = self._tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        counts = map(len, tokens)
        for _, images in self._waiting:
            to_images_end, after_images, chosen, rejected = islice(counts, 4)
            prompt = to_images_end + images + after_images
            answer = max(chosen, rejected) + 2  # the template ends it with <|im_end|> and a line break
            self._prompt.append(prompt)
            self._image.append(images)
            self._answer.append(answer)
            kept_prompt, kept_answer = kept_lengths(prompt, answer, self._cutoff_len)
            self._cut += kept_prompt < prompt or kept_answer < answer
            self._image_cut += images > 0 and kept_prompt < to_images_end + images
        self._waiting.clear()
