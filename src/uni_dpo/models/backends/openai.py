"""Answers from any server that speaks OpenAI's chat API: asked concurrently, with retries, limits and one reader."""

import asyncio
import json
import os
import random
import ssl
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from queue import SimpleQueue
from typing import Any

import httpx
import tenacity

from uni_dpo.errors import UniDPOError, plain
from uni_dpo.models.backends.base import AnswerLogprob, Failure, Request, Sample, Sampling, Usage
from uni_dpo.models.backends.images import data_url
from uni_dpo.models.backends.replies import (
    NotReportedError,
    UnusableReplyError,
    read_error,
    read_filled_samples,
    read_first_token,
    read_json,
    read_prompt_logprobs,
    read_samples,
    read_usage,
    sound,
    sum_choices,
)
from uni_dpo.models.backends.settings import OpenAIOptions
from uni_dpo.storage.identity import derive_seed

REPORTED_TOKENS = 20
"""The most alternatives that OpenAI's servers report for a token."""
LONGEST_WAIT = 60.0
"""Seconds that a server's Retry-After is followed, at most."""
LARGEST_REPLY = 64 * 2**20
"""Bytes of one reply, unpacked."""
PROBE_TIMEOUT = 10.0
_SECRET = 8
"""Characters of a key that is masked: shorter ones, such as `EMPTY`, are words."""


@dataclass
class _LostReplyError(Exception):
    """An attempt that brought nothing to read; `kind` names why, `detail` tells more."""

    kind: str
    detail: str = ""
    wait: float | None = None


class Server:
    """One server: its address, its key, and the only place that sends bytes to it.

    Redirects are not followed, so the key stays with the host of the setting. Whatever the server sends is masked
    before anything reads it.
    """

    def __init__(self, options: OpenAIOptions) -> None:
        key = (os.environ.get(options.api_key_env) or "").strip()
        if not key and options.base_url is None:
            raise UniDPOError(f"model {options.model!r}: the environment variable {options.api_key_env} is not set")
        if not (key.isascii() and key.isprintable()):
            raise UniDPOError(f"{options.api_key_env} holds characters that no key has; set it again")
        self.options = options
        self.key = key
        address = options.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
        try:
            self.url = httpx.URL(address.rstrip("/"))
        except (httpx.InvalidURL, ValueError) as error:
            raise UniDPOError(f"model {options.model!r}: base_url {address!r} is no address: {error}") from error
        if self.url.scheme not in ("http", "https") or not self.url.host:
            raise UniDPOError(f"model {options.model!r}: base_url {address!r} has to begin with http:// or https://")
        self.name = str(self.url.copy_with(userinfo=b""))

    def client(self) -> httpx.AsyncClient:
        """A client whose requests may only go to this server."""
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self.options.concurrency)
        headers = {"Authorization": f"Bearer {self.key or 'none'}"}
        return httpx.AsyncClient(headers=headers, timeout=None, follow_redirects=False, limits=limits, verify=_tls())

    async def call(
        self, client: httpx.AsyncClient, path: str, body: Mapping[str, Any] | None, timeout: float
    ) -> tuple[httpx.Response, bytes]:
        """Send one request and read its reply whole, within `timeout` seconds in all.

        Raises:
            TimeoutError, httpx.HTTPError: no whole reply came.
            UnusableReplyError: the reply is larger than `LARGEST_REPLY`.
        """
        sent = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} if sent else {}
        method = "GET" if sent is None else "POST"
        async with (
            asyncio.timeout(timeout),
            client.stream(method, f"{self.url}{path}", content=sent, headers=headers) as reply,
        ):
            received = bytearray()
            async for chunk in reply.aiter_bytes():
                received += chunk
                if len(received) > LARGEST_REPLY:
                    raise UnusableReplyError("reply too large")
        return reply, self._masked(bytes(received))

    def _masked(self, received: bytes) -> bytes:
        return received.replace(self.key.encode(), b"***") if len(self.key) >= _SECRET else received

    def mask(self, text: str) -> str:
        """A text without the key and without control characters."""
        return plain(sound(text.replace(self.key, "***") if len(self.key) >= _SECRET else text))

    def refused(self, said: str) -> UniDPOError:
        """The end of a run whose every request would fare alike."""
        option = self.options
        return UniDPOError(
            f"the server of {option.model!r} at {self.name} says {self.mask(said)}; "
            f"check model, base_url and {option.api_key_env}"
        )


def probe(options: OpenAIOptions) -> None:
    """Ask a server for its models, which costs nothing, before anything is asked of any.

    A server that lists no models is taken as it is. One that lists others is sent an empty chat, which only one that
    does not know the model refuses with 404.

    Raises:
        UniDPOError: no server is there, it refuses the key, sends elsewhere, or does not know the model.
    """
    server = Server(options)

    async def ask() -> None:
        async with server.client() as client:
            reply, body = await server.call(client, "/models", None, min(options.timeout, PROBE_TIMEOUT))
            if reply.status_code in (401, 403) or reply.is_redirect:
                raise _final(server, reply, body)
            if reply.status_code != 200:
                return
            listed = read_json(body).get("data")
            names = [item.get("id") for item in listed if isinstance(item, dict)] if isinstance(listed, list) else []
            if names and options.model not in names:
                empty = {"model": options.model, "messages": []}
                reply, body = await server.call(client, "/chat/completions", empty, PROBE_TIMEOUT)
                if reply.status_code == 404:
                    raise _final(server, reply, body)

    try:
        _Loop.shared().submit(ask()).result()
    except (httpx.ConnectError, httpx.ConnectTimeout, httpx.UnsupportedProtocol, httpx.ProxyError) as error:
        raise UniDPOError(
            f"no OpenAI-compatible server answers at {server.name}: {server.mask(_why(error))}; "
            f"start it, or correct base_url of {options.model!r}"
        ) from error
    except (TimeoutError, httpx.HTTPError, UnusableReplyError):
        return  # something is there; what it says to a question is counted then


class OpenAIBackend:
    """See `Backend`."""

    Options = OpenAIOptions
    comfortable_batch = 256

    def __init__(self, options: OpenAIOptions) -> None:
        self.options = options
        self.server = Server(options)
        self.usage = Usage()
        self._lock = threading.Lock()
        self._next_start = 0.0

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        """See `Backend.generate`. A reply of empty answers only, or a refusal, is asked for again."""
        replies = dict(self._sampled(requests, sampling, read_filled_samples))
        return [replies[place] for place in range(len(requests))]

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """See `Backend.stream`; as the server finishes them. An answer that is an empty text is one."""
        yield from self._sampled(requests, sampling, read_samples)

    def check(self) -> None:
        """See `probe`."""
        probe(self.options)

    def _sampled(
        self,
        requests: Sequence[Request],
        sampling: Sampling,
        read: Callable[[Mapping[str, Any]], list[Sample]],
    ) -> Iterator[tuple[int, list[Sample] | Failure]]:
        extra: dict[str, Any] = {"top_k": sampling.top_k} if sampling.top_k else {}
        if sampling.repetition_penalty != 1.0:
            extra["repetition_penalty"] = sampling.repetition_penalty
        asked = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.options.token_limit_field: sampling.max_tokens,
            **extra,
        }

        async def answer(put: "_Put", request: Request) -> list[Sample] | Failure:
            samples: list[Sample] = []
            for attempt in range(sampling.n):  # some servers take no notice of n and give one answer at a time
                seed = derive_seed(request.seed, "more", attempt) if attempt else request.seed
                settings = {**asked, "n": sampling.n - len(samples)}
                reply = await put(replace(request, seed=seed), settings, read)
                if isinstance(reply, Failure):
                    return reply
                samples += reply
                if len(samples) >= sampling.n:
                    break
            return samples[: sampling.n]

        yield from self._all([partial(answer, request=request) for request in requests])

    def choice_logprobs(
        self, requests: Sequence[Request], choices: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Failure]:
        """See `Backend.choice_logprobs`; among the 20 likeliest tokens, which is all that servers report."""

        def read(completion: Mapping[str, Any]) -> dict[str, float]:
            try:
                return sum_choices(read_first_token(completion), choices)
            except NotReportedError as error:
                raise UniDPOError(
                    f"the server of {self.options.model!r} reports no log-probabilities of tokens"
                ) from error

        asked = {
            "temperature": 0.0,
            "logprobs": True,
            "top_logprobs": REPORTED_TOKENS,
            self.options.token_limit_field: 1,
        }
        return self._put_all([(request, asked) for request in requests], read)

    def answer_logprobs(self, requests: Sequence[Request], answers: Sequence[str]) -> list[AnswerLogprob | Failure]:
        """See `Backend.answer_logprobs`; by `prompt_logprobs`, which vLLM's server has and OpenAI's has not."""
        alone: dict[str, Any] = {"temperature": 0.0, self.options.token_limit_field: 1}
        prompts = list(dict.fromkeys(replace(request, seed=0) for request in requests))
        counts = dict(zip(prompts, self._put_all([(prompt, alone) for prompt in prompts], _prompt_tokens), strict=True))
        scored = {**alone, "prompt_logprobs": 0, "add_generation_prompt": False, "continue_final_message": True}

        def read(completion: Mapping[str, Any]) -> list[float]:
            try:
                return read_prompt_logprobs(completion)
            except NotReportedError as error:
                raise UniDPOError(
                    f"the server of {self.options.model!r} does not return prompt_logprobs, so it cannot score given "
                    "answers; vLLM's server can, and so can the backends transformers and vllm"
                ) from error

        tables = self._put_all(
            [(request, {**scored, "answer": answer}) for request, answer in zip(requests, answers, strict=True)], read
        )
        replies: list[AnswerLogprob | Failure] = []
        for request, table in zip(requests, tables, strict=True):
            count = counts[replace(request, seed=0)]
            if isinstance(count, Failure) or isinstance(table, Failure):
                replies.append(count if isinstance(count, Failure) else table)
            else:
                replies.append(AnswerLogprob(sum(table[count:]), len(table) - count))
        return replies

    def _put_all(
        self, asked: Sequence[tuple[Request, dict[str, Any]]], read: Callable[[Mapping[str, Any]], Any]
    ) -> list[Any]:
        async def answer(put: "_Put", request: Request, settings: dict[str, Any]) -> Any:
            return await put(request, settings, read)

        jobs = [partial(answer, request=request, settings=settings) for request, settings in asked]
        replies = dict(self._all(jobs))
        return [replies[place] for place in range(len(asked))]

    def _all(self, jobs: Sequence[Callable[["_Put"], Coroutine[Any, Any, Any]]]) -> Iterator[tuple[int, Any]]:
        """Do jobs at once, `concurrency` of them; yield each one's place and outcome as it ends."""
        finished: SimpleQueue[tuple[int, Any]] = SimpleQueue()

        async def work() -> None:
            async with self.server.client() as client:
                put = _Put(self, client)
                free = asyncio.Semaphore(self.options.concurrency)

                async def one(place: int) -> None:
                    async with free:
                        try:
                            finished.put((place, await jobs[place](put)))
                        except Exception as error:
                            finished.put((place, error))

                await asyncio.gather(*map(one, range(len(jobs))))

        running = _Loop.shared().submit(work())
        try:
            for _ in jobs:
                place, outcome = finished.get()
                if isinstance(outcome, Exception):
                    raise outcome
                yield place, outcome
        finally:
            running.cancel()

    def turn(self) -> float:
        """Take the next place in the queue that `requests_per_minute` spaces; seconds until it comes."""
        if self.options.requests_per_minute is None:
            return 0.0
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + 60 / self.options.requests_per_minute
        return start - now

    def _count(self, usage: Usage) -> None:
        with self._lock:
            self.usage.add(usage)


class _Put:
    """One request until it is answered or its attempts are used up."""

    def __init__(self, backend: OpenAIBackend, client: httpx.AsyncClient) -> None:
        self.backend, self.client = backend, client
        self.server, self.options = backend.server, backend.options

    async def __call__(
        self, request: Request, settings: Mapping[str, Any], read: Callable[[Mapping[str, Any]], Any]
    ) -> Any:
        """What `read` makes of the reply, or a `Failure`."""
        body = await asyncio.to_thread(_body, self.options.model, request, dict(settings))
        seed = request.seed
        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type((_LostReplyError, UnusableReplyError)),
                stop=tenacity.stop_after_attempt(self.options.max_retries + 1),
                wait=self._pause,
                before_sleep=self._say,
                reraise=True,
            ):
                with attempt:
                    try:
                        return read(await self._completion({**body, "seed": seed % 2**31}))
                    except UnusableReplyError as error:
                        # A reply that was lost is asked for again as it was; one of no use has to come out otherwise.
                        if error.redraw:
                            seed = derive_seed(request.seed, attempt.retry_state.attempt_number)
                        self._fault(error.kind)
                        raise
                    except _LostReplyError as error:
                        self._fault(error.kind)
                        raise
        except (_LostReplyError, UnusableReplyError) as error:
            self.backend._count(Usage(failures=1))
            detail = (
                f" ({self.server.mask(error.detail)})" if isinstance(error, _LostReplyError) and error.detail else ""
            )
            return Failure(f"{error.kind}{detail} ({self.options.max_retries + 1} attempts)")
        except _BadRequestError as error:
            self._fault(str(error).partition(":")[0])
            self.backend._count(Usage(failures=1))
            return Failure(self.server.mask(str(error)))

    async def _completion(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        await asyncio.sleep(self.backend.turn())
        try:
            reply, received = await self.server.call(self.client, "/chat/completions", body, self.options.timeout)
        except TimeoutError as error:
            raise _LostReplyError("timeout") from error
        except httpx.DecodingError as error:
            raise UnusableReplyError("malformed reply") from error
        except httpx.HTTPError as error:
            raise _LostReplyError("no connection", _why(error)) from error
        if reply.status_code in (408, 409, 425, 429) or reply.status_code >= 500:
            message, code = read_error(received)
            if code != "insufficient_quota":
                raise _LostReplyError(f"HTTP {reply.status_code}", message, _retry_after(reply))
        if not reply.is_success:
            raise _final(self.server, reply, received)
        completion = read_json(received)
        prompt, answer = read_usage(completion)
        cost = (prompt * self.options.price_prompt + answer * self.options.price_completion) / 1e6
        self.backend._count(Usage(requests=1, prompt_tokens=prompt, completion_tokens=answer, cost=cost))
        return completion

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        if isinstance(error, _LostReplyError) and error.wait is not None:
            return error.wait
        return float(
            min(LONGEST_WAIT, self.options.backoff * 2 ** (state.attempt_number - 1)) * random.uniform(0.75, 1.25)
        )

    def _say(self, state: tenacity.RetryCallState) -> None:
        """Show that a request is put again, where somebody waits for it."""
        self.backend._count(Usage(retries=1))
        pause = state.next_action.sleep if state.next_action else 0.0
        if pause < 0.5:
            return
        error = state.outcome.exception() if state.outcome else None
        kind = getattr(error, "kind", "no answer")
        print(
            f"\n{self.options.model} at {self.server.name}: {kind}; attempt {state.attempt_number + 1} of "
            f"{self.options.max_retries + 1} in {pause:.0f} s",
            file=sys.stderr,
            flush=True,
        )

    def _fault(self, kind: str) -> None:
        with self.backend._lock:
            self.backend.usage.count_fault(kind)


class _BadRequestError(Exception):
    """A request that another attempt would not help."""


class _Loop:
    """An event loop in a thread of its own, so that callers with or without a loop can wait for it."""

    _only: "_Loop | None" = None

    def __init__(self) -> None:
        self.process = os.getpid()
        self.loop = asyncio.new_event_loop()
        threading.Thread(target=self.loop.run_forever, daemon=True, name="servers").start()

    @classmethod
    def shared(cls) -> "_Loop":
        """The loop of this process."""
        if cls._only is None or cls._only.process != os.getpid():
            cls._only = cls()
        return cls._only

    def submit(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Start a coroutine; its future."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)


@lru_cache(maxsize=1)
def _tls() -> ssl.SSLContext:
    """The certificates, which take a while to read, once."""
    return httpx.create_ssl_context()


def _final(server: Server, reply: httpx.Response, received: bytes) -> Exception:
    """The error of a reply that another attempt would not change: fatal where it would befall every request."""
    if reply.is_redirect:
        return UniDPOError(
            f"the server of {server.options.model!r} at {server.name} redirects to another address, which is not "
            "followed, since the key would go there; set base_url to that address if you trust it"
        )
    message, code = read_error(received)
    said = f"HTTP {reply.status_code}: {message}"
    if reply.status_code in (401, 403, 404) or code == "insufficient_quota":
        return server.refused(said)
    return _BadRequestError(said)


def _retry_after(reply: httpx.Response) -> float | None:
    try:
        wanted = float(reply.headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(LONGEST_WAIT, wanted) if wanted >= 0 else None


def _why(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _prompt_tokens(completion: Mapping[str, Any]) -> int:
    count, _ = read_usage(completion)
    if not count:
        raise UnusableReplyError("no count of the prompt's tokens")
    return count


def _body(model: str, request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    content: Any = sound(request.prompt)
    if request.content:
        content = _resized(request.content)
    elif request.images:
        content = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in request.images]
        content.append({"type": "text", "text": sound(request.prompt)})
    messages = [{"role": "system", "content": sound(request.system)}] if request.system is not None else []
    messages.append({"role": "user", "content": content})
    if "answer" in settings:
        messages.append({"role": "assistant", "content": sound(settings.pop("answer"))})
    return {"model": model, "messages": messages, **settings}


def _resized(items: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Items in the order of the asker, images within their own pixel limits."""
    from uni_dpo.models.vision import load_vision, png_url

    images, videos, _ = load_vision(items)
    if videos:
        raise UniDPOError("backend openai sends images only; evaluate videos with backend transformers")
    pictures = iter(images)
    return [
        {"type": "image_url", "image_url": {"url": png_url(next(pictures))}}
        if item["type"] == "image"
        else {"type": "text", "text": sound(item["text"])}
        for item in items
    ]
