"""Any server that speaks OpenAI's chat completions: `vllm serve`, `llamafactory-cli api`, hosted models."""

import http.client
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Failure, Request, Sample, Sampling, Usage
from uni_dpo.models.vision import load_vision, png_url
from uni_dpo.vlmeval.settings import ModelSettings

ATTEMPTS = 4
"""Tries per request; the pauses between them are 1, 2 and 4 seconds."""

_WORTH_ANOTHER_TRY = {408, 409, 429, 500, 502, 503, 504}


class OpenAIBackend:
    """Sends every request by itself, several at once; the server batches.

    The key is read from `OPENAI_API_KEY`. Images travel inside the request, already resized to the model's
    pixel limits; how they are put into the prompt is the server's business.
    """

    comfortable_batch = 256

    def __init__(self, settings: ModelSettings) -> None:
        """Ask the server for its models.

        Raises:
            UniDPOError: no server answers there.
        """
        self.settings = settings
        self.usage = Usage()
        self.url = str(settings.base_url).rstrip("/")
        try:
            self._call("/models", None, timeout=min(settings.timeout, 20))
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise UniDPOError(f"{self.url} refuses the key (HTTP {error.code}); set OPENAI_API_KEY") from error
            # A server need not list its models; it is there.
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise UniDPOError(f"no OpenAI-compatible server answers at {self.url}: {_reason(error)}") from error

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """Yield answers as the server finishes them."""
        pool = ThreadPoolExecutor(self.settings.concurrency)
        try:
            waiting = {pool.submit(self._answer, request, sampling): i for i, request in enumerate(requests)}
            for finished in as_completed(waiting):
                yield waiting[finished], [Sample(finished.result().strip(), 0, finished=True)]
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _answer(self, request: Request, sampling: Sampling) -> str:
        body = self._body(request, sampling)
        for attempt in range(ATTEMPTS):
            try:
                reply = self._call("/chat/completions", body, self.settings.timeout)
                return str(reply["choices"][0]["message"]["content"] or "")
            except urllib.error.HTTPError as error:
                reason = f"HTTP {error.code}: {error.read().decode(errors='replace')[:300]}"
                if error.code not in _WORTH_ANOTHER_TRY:
                    break
            except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError) as error:
                reason = _reason(error)
            if attempt < ATTEMPTS - 1:
                time.sleep(2**attempt)
        raise UniDPOError(f"{self.url} gave no answer: {reason}")

    def _body(self, request: Request, sampling: Sampling) -> dict[str, Any]:
        images, videos, _ = load_vision(request.content)
        if videos:
            raise UniDPOError("backend openai sends images only; evaluate videos with backend transformers")
        pictures = iter(images)
        content = [
            {"type": "image_url", "image_url": {"url": png_url(next(pictures))}}
            if item["type"] == "image"
            else {"type": "text", "text": item["text"]}
            for item in request.content
        ]
        turns = [{"role": "system", "content": request.system}] if request.system is not None else []
        drawn = {"seed": request.seed, "temperature": sampling.temperature, "top_p": sampling.top_p}
        return {
            "model": self.settings.model_path,
            "messages": [*turns, {"role": "user", "content": content}],
            "max_tokens": sampling.max_tokens,
            **(drawn if sampling.temperature else {"temperature": 0}),
        }

    def _call(self, path: str, body: dict[str, Any] | None, timeout: float) -> Any:
        call = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json",
                "Authorization": f"Bearer {os.environ.get('OPENAI_API_KEY', 'none')}",
            },
        )
        with urllib.request.urlopen(call, timeout=timeout) as reply:
            return json.load(reply)


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error or type(error).__name__)
