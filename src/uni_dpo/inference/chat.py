"""A conversation with any checkpoint, its answers token by token."""

from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Request, Sampling
from uni_dpo.models.backends.settings import TransformersOptions


class Chat:
    """What was said so far, and the model that answers.

    Attributes:
        turns: the content items of each turn: the user's, the model's, the user's …
        cut: whether the last answer ended at the token limit.
    """

    def __init__(self, options: TransformersOptions, sampling: Sampling, *, system: str | None, seed: int) -> None:
        """Load the checkpoint; with no system prompt the chat template does what it does by itself.

        Raises:
            UniDPOError: the checkpoint cannot be loaded.
        """
        from transformers import set_seed

        from uni_dpo.models.backends.transformers import TransformersBackend

        self.backend = TransformersBackend(options)
        self.sampling = sampling
        self.system = system
        self.turns: list[list[dict[str, Any]]] = []
        self.cut = False
        set_seed(seed)

    def say(self, text: str, images: list[Path]) -> Iterator[str]:
        """Put a turn, its images before its text, and yield the answer in pieces.

        Raises:
            UniDPOError: an image cannot be read, or the model sees none.
        """
        from transformers import TextIteratorStreamer

        turns = [*self.turns, Request(text, tuple(map(str, images))).items()]
        inputs = self._encode(turns)
        streamer = TextIteratorStreamer(
            self.backend.tokenizer, skip_prompt=True, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        outcome: list[Any] = []
        thread = Thread(target=self._generate, args=(inputs, streamer, outcome), daemon=True)
        thread.start()
        pieces = []
        for piece in streamer:
            if piece:
                pieces.append(piece)
                yield piece
        thread.join()
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        new = outcome[0][0, inputs["input_ids"].shape[1] :].tolist()
        self.cut = not any(token in self.backend.end_tokens for token in new)
        self.turns = [*turns, [{"type": "text", "text": "".join(pieces).strip()}]]

    def begin_anew(self) -> None:
        """Forget everything that was said."""
        self.turns = []

    def _encode(self, turns: list[list[dict[str, Any]]]) -> dict[str, Any]:
        from uni_dpo.models.prompt import open_image, render_turns, what_is_lost

        backend = self.backend
        said = [item for turn in turns for item in turn]
        paths = [item["image"] for item in said if item["type"] == "image"]
        if paths and not backend.sees_images:
            raise UniDPOError(f"{backend.options.model} cannot see images")
        images = [open_image(path) for path in paths]
        prompt = render_turns(backend.processor, turns, backend.style, self.system)
        if (lost := what_is_lost(backend.processor, said, prompt)) is not None:
            raise UniDPOError(f"{backend.options.model}: its chat template does not take this conversation: {lost}")
        inputs = backend.processor(text=[prompt], return_tensors="pt", **({"images": images} if images else {}))
        return dict(inputs.to(backend.device))

    def _generate(self, inputs: dict[str, Any], streamer: Any, outcome: list[Any]) -> None:
        draw: dict[str, Any] = {"do_sample": self.sampling.temperature > 0}
        if draw["do_sample"]:
            draw |= {name: getattr(self.sampling, name) for name in ("temperature", "top_p", "top_k")}
        try:
            limit = self.sampling.max_tokens
            outcome.append(self.backend.model.generate(**inputs, max_new_tokens=limit, streamer=streamer, **draw))
        except Exception as error:
            outcome.append(error)
            streamer.end()
