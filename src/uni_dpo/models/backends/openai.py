"""Answers from any server that speaks OpenAI's chat API, asked concurrently, with retries and limits."""

import json
import os
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import openai

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import AnswerLogprob, Failure, Request, Sample, Sampling, Usage, logsumexp
from uni_dpo.models.backends.images import data_url
from uni_dpo.models.backends.settings import OpenAIOptions
from uni_dpo.storage.identity import derive_seed

REPORTED_TOKENS = 20
"""The most alternatives that OpenAI's servers report for a token."""


class _UnusableReplyError(Exception):
    """A reply that arrived and cannot be used; `kind` names why, for the counts."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


class OpenAIBackend:
    """See `Backend`."""

    Options = OpenAIOptions

    def __init__(self, options: OpenAIOptions) -> None:
        key = os.environ.get(options.api_key_env)
        if key is None and options.base_url is None:
            raise UniDPOError(f"model {options.model!r}: the environment variable {options.api_key_env} is not set")
        self.options = options
        self.usage = Usage()
        self.client = openai.OpenAI(
            api_key=key or "none", base_url=options.base_url, timeout=options.timeout, max_retries=0
        )
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._next_start = 0.0

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample] | Failure]:
        """See `Backend.generate`. A reply of empty answers only, or a refusal, is asked for again."""

        def read(completion: Any) -> list[Sample]:
            samples = []
            for choice in completion.choices:
                if choice.message.refusal or choice.finish_reason == "content_filter":
                    raise _UnusableReplyError("refusal")
                text = (choice.message.content or "").strip()
                samples.append(Sample(text, 0, finished=choice.finish_reason == "stop"))
            if not any(sample.text for sample in samples):
                raise _UnusableReplyError("empty answer")
            return samples

        extra = {"extra_body": {"top_k": sampling.top_k}} if sampling.top_k else {}
        asked = {
            "n": sampling.n,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            self.options.token_limit_field: sampling.max_tokens,
            **extra,
        }
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

    def choice_logprobs(
        self, requests: Sequence[Request], choices: Mapping[str, Sequence[str]]
    ) -> list[dict[str, float] | Failure]:
        """See `Backend.choice_logprobs`; among the 20 likeliest tokens, which is all that servers report."""

        def read(completion: Any) -> dict[str, float]:
            reported = completion.choices[0].logprobs
            if not reported or not reported.content:
                raise UniDPOError(f"the server of {self.options.model!r} reports no log-probabilities of tokens")
            return sum_choices([(top.token, top.logprob) for top in reported.content[0].top_logprobs], choices)

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
            return [next(iter(token.values()))["logprob"] if token else 0.0 for token in reported]

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
            except openai.APITimeoutError:
                reason = "timeout"
            except (json.JSONDecodeError, openai.APIResponseValidationError):
                reason = "malformed reply"
            except openai.APIConnectionError as error:
                reason = f"no connection ({error.__cause__ or error})"
            except openai.APIStatusError as error:
                reason, cause = f"HTTP {error.status_code}", error
                if not _worth_retrying(error):
                    self._count_fault(reason)
                    return self._refused(error)
            self._count_fault(reason)
        self._count(Usage(failures=1))
        return Failure(f"{reason} ({self.options.max_retries + 1} attempts)")

    def _refused(self, error: openai.APIStatusError) -> Failure:
        """A request that another attempt would not help: fatal where it would befall every request."""
        message = f"HTTP {error.status_code}: {error.message}"
        if error.status_code in (401, 403, 404) or error.code == "insufficient_quota":
            raise UniDPOError(
                f"the server of {self.options.model!r} says {message}; "
                f"check model, base_url and {self.options.api_key_env}"
            ) from error
        self._count(Usage(failures=1))
        return Failure(message)

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
        prompt, answer = (used.prompt_tokens, used.completion_tokens) if used else (0, 0)
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


def _body(request: Request, settings: dict[str, Any]) -> dict[str, Any]:
    content: Any = request.prompt
    if request.images:
        content = [{"type": "image_url", "image_url": {"url": data_url(path)}} for path in request.images]
        content.append({"type": "text", "text": request.prompt})
    messages = [{"role": "user", "content": content}]
    if "answer" in settings:
        messages.append({"role": "assistant", "content": settings.pop("answer")})
    return {"messages": messages, **settings}


def _worth_retrying(error: openai.APIStatusError) -> bool:
    if error.code == "insufficient_quota":
        return False
    return error.status_code in (408, 409, 425, 429) or error.status_code >= 500
