"""Answers from any server that speaks OpenAI's chat API: asked concurrently, with retries, limits and one reader."""

import asyncio
import random
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from queue import SimpleQueue
from typing import Any

import httpx
import tenacity

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import AnswerLogprob, Failure, Request, Sample, Sampling, Usage
from uni_dpo.models.backends.replies import (
    MALFORMED,
    LackingError,
    UnusableReplyError,
    read_body,
    read_error,
    read_filled_samples,
    read_first_token,
    read_prompt_logprobs,
    read_samples,
    read_usage,
    refused_field,
    sum_choices,
)
from uni_dpo.models.backends.server import (
    LONGEST_WAIT,
    BadRequestError,
    Server,
    request_body,
    retry_after,
    submit,
    why,
)
from uni_dpo.models.backends.settings import OpenAIOptions
from uni_dpo.storage.identity import derive_seed

Read = Callable[[Mapping[str, Any]], Any]
"""What makes something of a completion."""
REPORTED_TOKENS = 20
"""The most alternatives that OpenAI's servers report for a token."""


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
        return _in_order(self._sampled(requests, sampling, read_filled_samples))

    def stream(self, requests: Sequence[Request], sampling: Sampling) -> Iterator[tuple[int, list[Sample] | Failure]]:
        """See `Backend.stream`; as the server finishes them. An answer that is an empty text is one."""
        yield from self._sampled(requests, sampling, read_samples)

    def check(self) -> None:
        """See `Server.probe`."""
        self.server.probe()

    def _sampled(
        self, requests: Sequence[Request], sampling: Sampling, read: Callable[..., list[Sample]]
    ) -> Iterator[tuple[int, list[Sample] | Failure]]:
        asked: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
        asked[self.options.token_limit_field] = sampling.max_tokens
        asked |= {"top_k": sampling.top_k} if sampling.top_k else {}
        if sampling.repetition_penalty != 1.0:
            asked["repetition_penalty"] = sampling.repetition_penalty
        texts = partial(read, join_parts=self.options.join_parts)

        async def answer(client: httpx.AsyncClient, request: Request) -> list[Sample] | Failure:
            samples: list[Sample] = []
            for attempt in range(sampling.n):  # some servers take no notice of n, some refuse one answer of several
                seed = derive_seed(request.seed, "more", attempt) if attempt else request.seed
                settings = {**asked, "n": sampling.n - len(samples)}
                reply = await self._put(client, replace(request, seed=seed), settings, texts)
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
            return sum_choices(read_first_token(completion), choices)

        asked = {**self._one_token, "logprobs": True, "top_logprobs": REPORTED_TOKENS}
        return self._put_all([(request, asked) for request in requests], read)

    def answer_logprobs(self, requests: Sequence[Request], answers: Sequence[str]) -> list[AnswerLogprob | Failure]:
        """See `Backend.answer_logprobs`; by `prompt_logprobs`, which vLLM's server has and OpenAI's has not."""
        alone = self._one_token
        prompts = list(dict.fromkeys(replace(request, seed=0) for request in requests))
        counts = dict(zip(prompts, self._put_all([(prompt, alone) for prompt in prompts], _prompt_tokens), strict=True))
        scored = {**alone, "prompt_logprobs": 0, "add_generation_prompt": False, "continue_final_message": True}
        asked = [(request, {**scored, "answer": answer}) for request, answer in zip(requests, answers, strict=True)]
        tables = self._put_all(asked, read_prompt_logprobs)
        lengths = [counts[replace(request, seed=0)] for request in requests]
        return [_behind(count, table) for count, table in zip(lengths, tables, strict=True)]

    @property
    def _one_token(self) -> dict[str, Any]:
        return {"temperature": 0.0, self.options.token_limit_field: 1}

    def _put_all(self, asked: Sequence[tuple[Request, dict[str, Any]]], read: Read) -> list[Any]:
        jobs = [partial(self._put, request=request, settings=settings, read=read) for request, settings in asked]
        return _in_order(self._all(jobs))

    def _all(self, jobs: Sequence[Callable[[httpx.AsyncClient], Coroutine[Any, Any, Any]]]) -> Iterator[Any]:
        """Do jobs at once, `concurrency` of them; yield each one's place and outcome as it ends."""
        finished: SimpleQueue[tuple[int, Any]] = SimpleQueue()
        own = self.server.client()  # made here, so that a proxy or certificates at fault are raised to the caller

        async def work() -> None:
            async with own as client:
                free = asyncio.Semaphore(self.options.concurrency)

                async def one(place: int) -> None:
                    async with free:
                        try:
                            finished.put((place, await jobs[place](client)))
                        except Exception as error:
                            finished.put((place, error))

                await asyncio.gather(*map(one, range(len(jobs))))

        running = submit(work())
        try:
            for _ in jobs:
                place, outcome = finished.get()
                if isinstance(outcome, Exception):
                    raise outcome
                yield place, outcome
        finally:
            running.cancel()

    async def _put(self, client: httpx.AsyncClient, request: Request, settings: Mapping[str, Any], read: Read) -> Any:
        """What `read` makes of the reply to a request, or a `Failure` when its attempts are used up."""
        body = await asyncio.to_thread(request_body, self.options.model, request, dict(settings))
        seed = request.seed
        try:
            async for attempt in tenacity.AsyncRetrying(
                retry=tenacity.retry_if_exception_type(UnusableReplyError),
                stop=tenacity.stop_after_attempt(self.options.max_retries + 1),
                wait=self._pause,
                before_sleep=self._say,
                reraise=True,
            ):
                with attempt:
                    try:
                        return read(await self._completion(client, {**body, "seed": seed % 2**31}))
                    except UnusableReplyError as error:
                        # A reply that was lost is asked for again as it was; one of no use has to come out otherwise.
                        if error.redraw:
                            seed = derive_seed(request.seed, attempt.retry_state.attempt_number)
                        self._count(Usage(faults={error.kind: 1}))
                        raise
        except UnusableReplyError as error:
            self._count(Usage(failures=1))
            detail = f" ({self.server.mask(error.detail)})" if error.detail else ""
            return Failure(f"{error.kind}{detail} ({self.options.max_retries + 1} attempts)")
        except LackingError as error:
            raise UniDPOError(f"the server of {self.options.model!r} {error}") from error
        except BadRequestError as error:
            self._count(Usage(failures=1, faults={str(error).partition(":")[0]: 1}))
            return Failure(self.server.mask(str(error)))

    async def _completion(self, client: httpx.AsyncClient, body: Mapping[str, Any]) -> Mapping[str, Any]:
        await asyncio.sleep(self.turn())
        sent = self.server.fields(body)
        try:
            reply, received = await self.server.call(client, "/chat/completions", sent, self.options.timeout)
        except TimeoutError as error:
            raise UnusableReplyError("timeout") from error
        except httpx.DecodingError as error:
            raise UnusableReplyError(MALFORMED) from error
        except httpx.HTTPError as error:
            raise UnusableReplyError("no connection", why(error)) from error
        if reply.status_code in (408, 409, 425, 429) or reply.status_code >= 500:
            message, code = read_error(received)
            if code != "insufficient_quota":
                raise UnusableReplyError(f"HTTP {reply.status_code}", message, wait=retry_after(reply))
        if reply.status_code in (400, 422) and (refused := refused_field(received, sent)):
            self.server.leave_out(refused, sent[refused])
            return await self._completion(client, body)
        if not reply.is_success:
            raise self.server.final_fault(reply, received)
        completion = read_body(received)
        prompt, answer = read_usage(completion)
        cost = (prompt * self.options.price_prompt + answer * self.options.price_completion) / 1e6
        self._count(Usage(requests=1, prompt_tokens=prompt, completion_tokens=answer, cost=cost))
        return completion

    def turn(self) -> float:
        """Take the next place in the queue that `requests_per_minute` spaces; seconds until it comes."""
        if self.options.requests_per_minute is None:
            return 0.0
        now = time.monotonic()
        start = max(now, self._next_start)
        self._next_start = start + 60 / self.options.requests_per_minute
        return start - now

    def _pause(self, state: tenacity.RetryCallState) -> float:
        error: Any = state.outcome.exception() if state.outcome else None
        if error is not None and error.wait is not None:
            return float(error.wait)
        longer = self.options.backoff * 2 ** (state.attempt_number - 1)
        return float(min(LONGEST_WAIT, longer) * random.uniform(0.75, 1.25))

    def _say(self, state: tenacity.RetryCallState) -> None:
        """Show that a request is put again, where somebody waits for it."""
        self._count(Usage(retries=1))
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

    def _count(self, usage: Usage) -> None:
        with self._lock:
            self.usage.add(usage)


def _in_order(replies: Iterable[tuple[int, Any]]) -> list[Any]:
    """Replies that came in any order, by their places."""
    return [reply for _, reply in sorted(replies, key=lambda placed: placed[0])]


def _behind(count: int | Failure, table: list[float] | Failure) -> AnswerLogprob | Failure:
    """The log-probability of what stands behind the first `count` tokens."""
    if isinstance(count, Failure):
        return count
    return table if isinstance(table, Failure) else AnswerLogprob(sum(table[count:]), len(table) - count)


def _prompt_tokens(completion: Mapping[str, Any]) -> int:
    count, _ = read_usage(completion)
    if not count:
        raise UnusableReplyError("no count of the prompt's tokens")
    return count


BACKEND = OpenAIBackend
