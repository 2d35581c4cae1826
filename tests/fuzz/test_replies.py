"""Whatever a server sends is an answer, a failure or one message; the key and the clock are kept."""

import time
from collections.abc import Iterator

import pytest
from replies import OddServer, ask, client

from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends.base import Failure, Request, Sampling

CASES = 250


@pytest.fixture(scope="module")
def odd() -> Iterator[OddServer]:
    server = OddServer()
    yield server
    server.close()


def test_every_reply_is_an_answer_a_failure_or_one_message(odd: OddServer) -> None:
    backend = client(odd)
    shown: list[str] = []
    outcomes = {"answer": 0, "failure": 0, "message": 0}
    for seed in range(CASES):
        try:
            reply = ask(backend, seed)
        except UniDPOError as error:
            outcomes["message"] += 1
            shown.append(str(error))
            continue
        outcomes["failure" if isinstance(reply, Failure) else "answer"] += 1
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
