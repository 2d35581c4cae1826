"""Answers from any server that speaks OpenAI's chat API, asked concurrently, with retries and limits.

The key goes to the server that was named and to no other: redirects are not followed, and where a server's error quotes
the key, it is masked. A reply that cannot be used is a fault with a name, never an answer and never a traceback.
"""

import math
import os
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import Any

import httpx
import openai

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import AnswerLogprob, Failure, Request, Sample, Sampling, Usage, logsumexp
from uni_dpo.models.backends.images import data_url
from uni_dpo.models.backends.settings import OpenAIOptions
from uni_dpo.storage.identity import derive_seed

REPORTED_TOKENS = 20
"""The most alternatives that OpenAI's servers report for a token."""


MOST_BYTES = 64 * 2**20
"""Of one reply; no answer is as long."""

CHECK_SECONDS = 20.0
"""For a server to say that it is there."""

_SHAPES = (AttributeError, TypeError, KeyError, IndexError, ValueError, RecursionError)
"""What reading raises where a reply has another shape than the chat API's."""


class _BoundedTransport(httpx.HTTPTransport):
    """Bounds a whole request in time and size: httpx by itself bounds each read, and a server may drip."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request; reading its reply ends with a timeout once the time is used up."""
        deadline = time.monotonic() + self._seconds
        response = super().handle_request(request)
        response.stream = _BoundedStream(response.stream, deadline)
        return response


class _BoundedStream(httpx.SyncByteStream):
    def __init__(self, stream: Any, deadline: float) -> None:
        self._stream, self._deadline = stream, deadline

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            size += len(chunk)
            if time.monotonic() > self._deadline:
                raise httpx.ReadTimeout("the reply takes longer than the timeout")
            if size > MOST_BYTES:
                raise httpx.DecodingError(f"the reply is larger than {MOST_BYTES:,} bytes")
            yield chunk

    def close(self) -> None:
        self._stream.close()


class _UnusableReplyError(Exception):
    """A reply that arrived and cannot be used; `kind` names why, for the counts."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class OpenAIBackend:
    """See `Backend`."""

    Options = OpenAIOptions
    comfortable_batch = 256

    def __init__(self, options: OpenAIOptions) -> None:
        key = os.environ.get(options.api_key_env)
        if key is None and options.base_url is None:
            raise UniDPOError(f"model {options.model!r}: the environment variable {options.api_key_env} is not set")
        self.options = options
        self.usage = Usage()
        self._key = key or "none"
        bounded = httpx.Client(
            transport=_BoundedTransport(options.timeout), timeout=options.timeout, follow_redirects=False
        )
        self.client = openai.OpenAI(
            api_key=self._key,
            base_url=options.base_url,
            timeout=options.timeout,
            max_retries=0,
            http_client=bounded,  # type: ignore[arg-type,unused-ignore]  # typed for the next httpx alone, takes both
        )
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._next_start = 0.0

    def check(self) -> None:
        """See that the server is there and takes the key; a server need not list its models.

        Raises:
            UniDPOError: no server answers, or it refuses the key.
        """
        try:
            self.client.models.list(timeout=min(self.options.timeout, CHECK_SECONDS))
        except openai.APIStatusError as error:
            if error.status_code in (401, 403):
                raise UniDPOError(
                    f"{self.address} refuses the key (HTTP {error.status_code}); set {self.options.api_key_env}"
                ) from None
        except openai.APIConnectionError as error:
            reason = self._masked(error.__cause__ or error)
            raise UniDPOError(f"no OpenAI-compatible server answers at {self.address}: {reason}") from None
        except _SHAPES:
            pass  # it answers

    @property
    def address(self) -> str:
        """Of the server, as messages name it."""
        return str(self.client.base_url).rstrip("/")

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        """See `Backend.generate`. A reply of empty answers only, or a refusal, is asked for again."""

        def read(completion: Any) -> list[Sample]:
            samples = _samples(completion)
            if not any(sample.text for sample in samples):
                raise _UnusableReplyError("empty answer")
            return samples

        asked = self._asked(sampling)
        replies = self._put_all([(request, asked) for request in requests], read)
        for attempt in range(1, sampling.n):  # some servers take no notice of n and give one answer at a time
            short = [i for i, reply in enumerate(replies) if isinstance(reply, list) and len(reply) < sampling.n]
            more = [
                (
                    replace(requests[i], seed=derive_seed(requests[i].seed, "more", attempt)),
                    {**asked, "n": sampling.n - len(replies[i])},
                )
                for i in short
            ]
            for i, reply in zip(short, self._put_all(more, read), strict=True):
                replies[i] = reply if isinstance(reply, Failure) else replies[i] + reply
        return replies

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """See `Backend.stream`; an answer that is an empty text is one."""
        asked = self._asked(sampling)
        self._stopped.clear()
        with ThreadPoolExecutor(self.options.concurrency) as pool:
            places: dict[Future[Any], int] = {
                pool.submit(self._put, request, asked, _samples): place for place, request in enumerate(requests)
            }
            try:
                while places:
                    for finished in wait(places, return_when=FIRST_COMPLETED).done:
                        yield places.pop(finished), finished.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _asked(self, sampling: Sampling) -> dict[str, Any]:
        extra: dict[str, Any] = {"top_k": sampling.top_k} if sampling.top_k else {}
        if sampling.repetition_penalty != 1:
            extra["repetition_penalty"] = sampling.repetition_penalty
        return {
            "n": sampling.n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.options.token_limit_field: sampling.max_tokens,
            **({"extra_body": extra} if extra else {}),
        }

    def choice_logprobs(
        self, requests: Sequence[Request], choices: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Failure]:
        """See `Backend.choice_logprobs`; among the 20 likeliest tokens, which is all that servers report."""

        def read(completion: Any) -> dict[str, float]:
            reported = completion.choices[0].logprobs
            if not reported or not reported.content:
                raise UniDPOError(f"the server of {self.options.model!r} reports no log-probabilities of tokens")
            tokens = [(str(top.token), _logprob(top.logprob)) for top in reported.content[0].top_logprobs]
            return sum_choices(tokens, choices)

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
        prompts = list(dict.fromkeys((request.prompt, request.images) for request in requests))
        counts = dict(
            zip(
                prompts,
                self._put_all([(Request(*prompt), alone) for prompt in prompts], lambda c: c.usage.prompt_tokens),
                strict=True,
            )
        )
        scored = {
            **alone,
            "extra_body": {
                "prompt_logprobs": 0,
                "add_generation_prompt": False,
                "continue_final_message": True,
            },
        }

        def read(completion: Any) -> list[float]:
            reported = getattr(completion, "prompt_logprobs", None)
            if not reported:
                raise UniDPOError(
                    f"the server of {self.options.model!r} does not return prompt_logprobs, so it cannot score given "
                    "answers; vLLM's server can, and so can the backends transformers and vllm"
                )
            return [_logprob(next(iter(token.values()))["logprob"]) if token else 0.0 for token in reported]

        tables = self._put_all(
            [(request, {**scored, "answer": answer}) for request, answer in zip(requests, answers, strict=True)], read
        )
        replies: list[AnswerLogprob | Failure] = []
        for request, table in zip(requests, tables, strict=True):
            count = counts[request.prompt, request.images]
            if isinstance(count, Failure) or isinstance(table, Failure):
                replies.append(count if isinstance(count, Failure) else table)
            else:
                replies.append(AnswerLogprob(sum(table[count:]), len(table) - count))
        return replies

    def _put_all(self, asked: Sequence[tuple[Request, dict[str, Any]]], read: Callable[[Any], Any]) -> list[Any]:
        self._stopped.clear()
        with ThreadPoolExecutor(self.options.concurrency) as pool:
            futures = [pool.submit(self._put, request, settings, read) for request, settings in asked]
            try:
                return [future.result() for future in futures]
            except BaseException:
                self._stopped.set()  # those waiting for another attempt give up at once
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _put(self, request: Request, settings: dict[str, Any], read: Callable[[Any], Any]) -> Any:
        """One request until it is answered or its attempts are used up."""
        reason = ""
        cause: openai.APIStatusError | None = None
        for attempt in range(self.options.max_retries + 1):
            if attempt:
                self._count(Usage(retries=1))
                self._stopped.wait(self._pause(attempt, cause))
            self._wait_for_turn()
            if self._stopped.is_set():
                return Failure("stopped")
            # A reply that was lost is asked for again as it was; one that was no use has to come out otherwise.
            seed = derive_seed(request.seed, attempt) if reason in ("refusal", "empty answer") else request.seed
            cause = None
            try:
                completion = self.client.chat.completions.create(
                    model=self.options.model, seed=seed % 2**31, **_body(request, dict(settings))
                )
                if not _well_formed(completion):
                    raise _UnusableReplyError("malformed reply")
                self._count_tokens(completion)
                return read(completion)
            except _UnusableReplyError as error:
                reason = error.kind
            except UniDPOError:
                raise
            except openai.APITimeoutError:
                reason = "timeout"
            except openai.APIConnectionError as error:
                reason = f"no connection ({self._masked(error.__cause__ or error)})"
            except openai.APIStatusError as error:
                reason, cause = f"HTTP {error.status_code}", error
                if not _worth_retrying(error):
                    self._count_fault(reason)
                    return self._refused(error)
            except (openai.APIResponseValidationError, httpx.HTTPError, *_SHAPES):
                reason = "malformed reply"
            self._count_fault(reason)
        self._count(Usage(failures=1))
        return Failure(f"{reason} ({self.options.max_retries + 1} attempts)")

    def _refused(self, error: openai.APIStatusError) -> Failure:
        """A request that another attempt would not help: fatal where it would befall every request."""
        told = isinstance(error.body, dict) and "message" in error.body
        said = error.message if told else f"{error.message} {error.response.text}"
        message = f"HTTP {error.status_code}: {self._masked(said)}"
        if error.status_code in range(300, 400):
            raise UniDPOError(
                f"the server of {self.options.model!r} at {self.address} redirects to another address, which is not "
                "followed, since the key would go there; set base_url to that address if you trust it"
            ) from None
        if error.status_code in (401, 403, 404) or error.code == "insufficient_quota":
            raise UniDPOError(
                f"the server of {self.options.model!r} says {message}; "
                f"check model, base_url and {self.options.api_key_env}"
            ) from None
        self._count(Usage(failures=1))
        return Failure(message)

    def _masked(self, said: object) -> str:
        """What a server or a library said, its first 300 characters, without the key."""
        text = str(said).replace(self._key, "***") if len(self._key) > len("none") else str(said)
        return text[:300]

    def _pause(self, attempt: int, error: openai.APIStatusError | None) -> float:
        wanted = error.response.headers.get("retry-after", "") if error else ""
        if wanted.isdecimal():
            return min(60.0, float(wanted))
        return float(self.options.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25))

    def _wait_for_turn(self) -> None:
        if self.options.requests_per_minute is None:
            return
        with self._lock:
            start = max(time.monotonic(), self._next_start)
            self._next_start = start + 60 / self.options.requests_per_minute
        time.sleep(max(0.0, start - time.monotonic()))

    def _count_tokens(self, completion: Any) -> None:
        used = completion.usage
        counts = [getattr(used, name, 0) for name in ("prompt_tokens", "completion_tokens")]
        prompt, answer = (count if isinstance(count, int) else 0 for count in counts)
        cost = (prompt * self.options.price_prompt + answer * self.options.price_completion) / 1e6
        self._count(Usage(requests=1, prompt_tokens=prompt, completion_tokens=answer, cost=cost))

    def _count(self, usage: Usage) -> None:
        with self._lock:
            self.usage.add(usage)

    def _count_fault(self, kind: str) -> None:
        with self._lock:
            self.usage.count_fault(kind.partition(" (")[0])


def sum_choices(reported: Sequence[tuple[str, float]], choices: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Log of each choice's summed probability, from tokens that a server names by their text.

    A token counts for the choice of which it is a form. Where no token is a whole form (small vocabularies
    spell `Yes` as `Y`, `es`), those that begin the forms of one choice only count for it.
    """
    whole = {
        name: [logprob for token, logprob in reported if _plain(token) in forms] for name, forms in choices.items()
    }
    if any(whole.values()):
        return {name: logsumexp(logprobs) for name, logprobs in whole.items()}
    begun: dict[str, list[float]] = {name: [] for name in choices}
    for token, logprob in reported:
        text = _plain(token)
        owners = [name for name, forms in choices.items() if any(form.startswith(text) for form in forms)]
        if text.strip() and len(owners) == 1:
            begun[owners[0]].append(logprob)
    return {name: logsumexp(logprobs) for name, logprobs in begun.items()}


def _well_formed(completion: Any) -> bool:
    """The client builds whatever JSON it gets; a proxy's error page or half a record is no completion."""
    choices = getattr(completion, "choices", None)
    return isinstance(choices, list) and bool(choices) and all(choice.message is not None for choice in choices)


def _plain(token: str) -> str:
    """Some servers show the leading space of a token as the tokenizer's own mark."""
    return f" {token[1:]}" if token[:1] in ("Ġ", "▁") else token


def _samples(completion: Any) -> list[Sample]:
    return [_sample(choice) for choice in completion.choices]


def _sample(choice: Any) -> Sample:
    """Read one answer: a text, or the text parts of a list; whatever else stands in its place is a fault."""
    message = choice.message
    if getattr(message, "refusal", None) or choice.finish_reason == "content_filter":
        raise _UnusableReplyError("refusal")
    content = message.content
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, Mapping) and part.get("type") == "text"]
        content = "".join(part for part in parts if isinstance(part, str)) if parts else None
    if content is None:
        reasoned = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
        raise _UnusableReplyError("reasoning without an answer" if reasoned else "empty answer")
    if not isinstance(content, str):
        raise _UnusableReplyError("malformed reply")
    whole = content.encode("utf-16", "surrogatepass").decode("utf-16", "replace")  # a lone surrogate is no text
    return Sample(whole.strip(), 0, finished=choice.finish_reason != "length")


def _logprob(value: Any) -> float:
    """A log-probability as a server gives it; one that is no number says nothing about the token."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value > 1e-3:
        raise _UnusableReplyError("log-probability that is none")
    return float(value)


def _body(request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    content: Any = _content(request)
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if request.system is not None:
        messages.insert(0, {"role": "system", "content": request.system})
    if "answer" in settings:
        messages.append({"role": "assistant", "content": settings.pop("answer")})
    return {"messages": messages, **settings}


def _content(request: Request) -> Any:
    """The turn as the chat API has it; images with pixel limits are resized here, since servers know none."""
    if not request.content:
        images = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in request.images]
        return [*images, {"type": "text", "text": request.prompt}] if images else request.prompt
    from uni_dpo.models.vision import load_vision, png_url

    pictures, videos, _ = load_vision(request.content)
    if videos:
        raise UniDPOError("backend openai sends images only; ask about videos with backend transformers")
    left = iter(pictures)
    return [
        {"type": "image_url", "image_url": {"url": png_url(next(left))}}
        if item["type"] == "image"
        else {"type": "text", "text": item["text"]}
        for item in request.content
    ]


def _worth_retrying(error: openai.APIStatusError) -> bool:
    if error.code == "insufficient_quota":
        return False
    return error.status_code in (408, 409, 425, 429) or error.status_code >= 500
