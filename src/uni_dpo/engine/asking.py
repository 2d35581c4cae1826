"""Asking a model for a reply of a fixed form, and asking again where the form is missing."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from uni_dpo.engine.records import Aside
from uni_dpo.models.backends.base import Backend, Failure, Request, Sampling
from uni_dpo.storage.identity import derive_seed

T = TypeVar("T")

RETRY_TEMPERATURE = 0.7
"""The first attempt takes the likeliest reply; another attempt has to be able to differ from it."""


def ask(
    backend: Backend,
    requests: Sequence[Request],
    parse: Callable[[str], T | None],
    *,
    what: str,
    max_tokens: int,
    attempts: int = 2,
) -> list[T | Failure | Aside]:
    """One parsed reply per request; equal requests are put once and share it.

    Args:
        parse: reply → value, or None where the reply has not the form that was asked for.
        what: names the expected thing in the reason of an `Aside`.
        attempts: how often each request is put, at most.

    Returns:
        Per request the value, the backend's `Failure`, or the last reply that could not be parsed.
    """
    results: dict[Request, T | Failure | Aside] = {}
    waiting = list(dict.fromkeys(requests))
    for attempt in range(attempts):
        sampling = Sampling(temperature=RETRY_TEMPERATURE if attempt else 0.0, max_tokens=max_tokens)
        put = [replace(request, seed=derive_seed(request.seed, attempt)) for request in waiting]
        unparsed = []
        for request, reply in zip(waiting, backend.generate(put, sampling) if put else [], strict=True):
            if isinstance(reply, Failure):
                results[request] = reply
                continue
            value = parse(reply[0].text)
            if value is None:
                results[request] = Aside(f"no {what}", reply[0].text)
                unparsed.append(request)
            else:
                results[request] = value
        waiting = unparsed
    return [results[request] for request in requests]
