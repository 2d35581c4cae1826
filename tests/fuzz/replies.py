"""Server replies that go wrong in every way that a seed draws, for one real HTTP server.

`python tests/fuzz/replies.py --count 1000 --seed 0` prints what came of them: answers, failures and messages are right.
"""

import copy
import json
import math
import random
import sys
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

from fuzzing import main
from local_server import LocalServer

from uni_dpo.models.backends.base import Failure, Request, Sampling
from uni_dpo.models.backends.openai import OpenAIBackend, OpenAIOptions

ODD: list[Any] = [
    None, True, 0, -1, 5, 1e308, float("nan"), float("inf"), "", "x", "\ud800", "\x1b[31m", [], ["x"], [None], [[]],
    {}, {"a": 1}, [{"type": "text", "text": "hi"}], [{"type": "text"}], "9" * 400,
]  # fmt: skip
"""What may stand where something else is expected."""
HEADERS = [
    {},
    {"Retry-After": "0"},
    {"Retry-After": "-5"},
    {"Retry-After": "9" * 400},
    {"Location": "http://127.0.0.1:9/"},
]


def sound_reply() -> dict[str, Any]:
    """A completion with everything that a client of ours reads."""
    top = [{"token": "Yes", "logprob": -0.1}, {"token": "No", "logprob": -2.3}]
    return {
        "id": "x",
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": "seven"},
                "logprobs": {"content": [{"token": "Yes", "logprob": -0.1, "top_logprobs": top}]},
            }
        ],
        "usage": {"prompt_tokens": 5, "completion_tokens": 3},
        "prompt_logprobs": [None, {"1": {"logprob": -0.5}}],
    }


def draw(seed: int) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body of the reply with this seed."""
    rng = random.Random(seed)
    reply: Any = sound_reply()
    for _ in range(rng.randint(1, 3)):
        holder, key = rng.choice(list(_places(reply)))
        if rng.random() < 0.2 and isinstance(holder, dict):
            del holder[key]
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
        if not list(_places(reply)):
            break
    body = json.dumps(rng.choice([reply] * 9 + ODD)).encode()
    body = rng.choice([body] * 12 + [body[: len(body) // 2], b"\xff\xfe" + body, b"[" * 100_000, b"", b"<html>"])
    status = rng.choice([200] * 12 + [201, 204, 302, 307, 400, 418, 429, 500, 502])
    return status, rng.choice(HEADERS[:2] if status in (429, 500, 502) else HEADERS), body


def _places(value: Any) -> Any:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(items):
        yield value, key
        yield from _places(inner)


class OddServer(LocalServer):
    """Answers each chat with the reply whose seed the prompt is; `drip` sends one byte at a time, `hang` none."""

    def __init__(self) -> None:
        self.keys: list[str | None] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._send(200, {}, json.dumps({"data": [{"id": "m"}]}).encode())

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.keys.append(self.headers["Authorization"])
                asked = body["messages"][0]["content"]
                if asked == "hang":
                    time.sleep(30)
                elif asked == "drip":
                    self.send_response(200)
                    self.end_headers()
                    for _ in range(300):
                        self.wfile.write(b" ")
                        time.sleep(0.1)
                elif asked == "echo":
                    said = {"error": {"message": f"wrong key {self.headers['Authorization']}"}}
                    self._send(400, {}, json.dumps(said).encode())
                else:
                    self._send(*draw(int(asked)))

            def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(0 if status == 204 else len(body)))
                self.end_headers()
                self.wfile.write(b"" if status == 204 else body)

        super().__init__(Handler)


def client(odd: OddServer, **more: float) -> OpenAIBackend:
    """A backend that asks that server once."""
    told: dict[str, Any] = {"timeout": 5.0, "max_retries": 0, "backoff": 0.0, **more}
    return OpenAIBackend(OpenAIOptions("m", base_url=odd.url, **told))


def ask(backend: OpenAIBackend, seed: int) -> Any:
    """The reply with this seed, as one of the three questions that a backend is asked; checked for what it may hold."""
    request = Request(str(seed))
    calls: tuple[Callable[[], list[Any]], ...] = (
        lambda: backend.generate([request], Sampling()),
        lambda: backend.choice_logprobs([request], {"yes": ("Yes",), "no": ("No",)}),
        lambda: backend.answer_logprobs([request], ["seven"]),
    )
    (reply,) = calls[seed % 3]()
    if isinstance(reply, list):
        "".join(sample.text for sample in reply).encode()
        assert any(sample.text for sample in reply)
    if isinstance(reply, dict):
        assert not any(math.isnan(value) or value > 1e-9 for value in reply.values())
    assert isinstance(reply, Failure | list | dict) or math.isfinite(reply.total)
    return reply


def fuzz_server() -> int:
    """Ask for every reply of a range of seeds."""
    odd = OddServer()
    backend = client(odd)

    def broken_reply(rng: random.Random, number: int) -> tuple[str, Callable[[], object]]:
        seed = rng.randrange(2**40) * 3 + number % 3
        return ("generate", "choice_logprobs", "answer_logprobs")[number % 3], lambda: ask(backend, seed)

    try:
        return main("replies", broken_reply, __doc__)
    finally:
        odd.close()


if __name__ == "__main__":
    sys.exit(fuzz_server())
