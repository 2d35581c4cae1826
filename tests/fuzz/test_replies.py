"""Whatever a server sends is an answer, a failure or one message; the key and the clock are kept."""

import math
import time
from collections.abc import Iterator

import pytest
from replies import OddServer

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Failure, Request, Sampling
from uni_dpo.models.backends.openai import OpenAIBackend, OpenAIOptions

CASES = 300


@pytest.fixture(scope="module")
def odd() -> Iterator[OddServer]:
    server = OddServer()
    yield server
    server.close()


def client(odd: OddServer, **more: float) -> OpenAIBackend:
    told = {"timeout": 5.0, "max_retries": 0, "backoff": 0.0, **more}
    return OpenAIBackend(OpenAIOptions("m", base_url=odd.url, **told))


def test_every_reply_is_an_answer_a_failure_or_one_message(odd: OddServer) -> None:
    backend = client(odd)
    shown: list[str] = []
    outcomes = {"answer": 0, "failure": 0, "message": 0}
    for seed in range(CASES):
        request = Request(str(seed))
        calls = (
            lambda r=request: backend.generate([r], Sampling()),
            lambda r=request: backend.choice_logprobs([r], {"yes": ("Yes",), "no": ("No",)}),
            lambda r=request: backend.answer_logprobs([r], ["seven"]),
        )
        try:
            (reply,) = calls[seed % 3]()
        except UniDPOError as error:
            outcomes["message"] += 1
            shown.append(str(error))
            continue
        outcomes["failure" if isinstance(reply, Failure) else "answer"] += 1
        if isinstance(reply, list):
            "".join(sample.text for sample in reply).encode()
            assert any(sample.text for sample in reply)
        if isinstance(reply, dict):
            assert not any(math.isnan(value) or value > 1e-9 for value in reply.values())
    assert not any("\x1b" in message for message in shown)
    assert min(outcomes.values()) > 0, outcomes


@pytest.mark.parametrize("how", ["drip", "hang"])
def test_the_timeout_bounds_the_whole_request(odd: OddServer, how: str) -> None:
    backend = client(odd, timeout=0.5)
    begun = time.monotonic()
    (reply,) = backend.generate([Request(how)], Sampling())
    assert isinstance(reply, Failure)
    assert backend.usage.faults == {"timeout": 1}
    assert time.monotonic() - begun < 10, "the server would have taken 30 s"


def test_a_quoted_key_is_masked(odd: OddServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-not-to-be-seen")
    (reply,) = client(odd).generate([Request("echo")], Sampling())
    assert reply == Failure("HTTP 400: wrong key Bearer ***")
    assert odd.keys[-1] == "Bearer sk-not-to-be-seen"
