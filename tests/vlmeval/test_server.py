"""Against a real server: HTTP, JSON, images in the request, and transformers behind it."""

import base64
import contextlib
import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import write_mcq, write_vqa
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import Failure, Request, Sample, Sampling
from uni_dpo.models.backends.openai import OpenAIBackend
from uni_dpo.models.backends.settings import OpenAIOptions

REQUEST = Request(seed=4, system="Be brief.", content=({"type": "text", "text": "Who?"},))
GREEDY = Sampling(temperature=0.0)
SOMEONE = [(0, [Sample("someone", 0, finished=True)])]


class Server(ThreadingHTTPServer):
    """Chat completions over a checkpoint, or as many failures as a test asks for."""

    def __init__(self, checkpoint: Path | None = None) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.failures: list[int] = []
        self.bodies: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.lock = threading.Lock()
        if checkpoint is not None:
            from transformers import AutoModelForImageTextToText, AutoProcessor

            self.model = AutoModelForImageTextToText.from_pretrained(checkpoint).float().eval()
            self.processor = AutoProcessor.from_pretrained(checkpoint)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def answer(self, body: dict[str, Any]) -> str:
        if not hasattr(self, "model"):
            return "someone"
        import torch
        from PIL import Image

        images = []
        for item in body["messages"][-1]["content"]:
            if item["type"] == "image_url":
                packed = item["image_url"]["url"].removeprefix("data:image/png;base64,")
                images.append(Image.open(io.BytesIO(base64.b64decode(packed))))
                item["type"] = "image"
        prompt = self.processor.apply_chat_template(body["messages"], tokenize=False, add_generation_prompt=True)
        inputs = self.processor(text=[prompt], images=images, return_tensors="pt")
        with torch.no_grad():
            output = self.model.generate(**inputs, do_sample=False, max_new_tokens=body["max_tokens"])
        return str(self.processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self._reply(200, {"data": []})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.bodies.append(json.loads(json.dumps(body)))
            self.server.keys.add(self.headers["Authorization"])
            if self.server.failures:
                self._reply(self.server.failures.pop(0), {"error": "busy"})
            else:
                self._reply(200, {"choices": [{"message": {"content": self.server.answer(body)}}]})

    def _reply(self, status: int, content: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(content).encode())

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def start(checkpoint: Path | None = None) -> Server:
        server = Server(checkpoint)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def backend(server: Server, **settings: Any) -> OpenAIBackend:
    return OpenAIBackend(OpenAIOptions("tiny", base_url=server.url, backoff=0.01, max_retries=3, **settings))


def test_a_server_answers_what_transformers_answers(
    kit: str, serve: Any, tiny_qwen2_vl: Path, digits: dict, tmp_path: Path
) -> None:
    from uni_dpo.vlmeval.run import evaluate_tables

    server = serve(tiny_qwen2_vl)
    tables = {
        "choices": write_mcq(digits["held_out"][:4], tmp_path / "mcq.tsv"),
        "answers": write_vqa(digits["held_out"][:4], tmp_path / "vqa.tsv"),
    }
    models = {
        "here": {"model_path": str(tiny_qwen2_vl), "max_new_tokens": 6},
        "there": {"model_path": "tiny", "backend": "openai", "base_url": server.url, "max_new_tokens": 6},
    }
    results = evaluate_tables(models, tables, tmp_path / "work")
    assert not results.failures
    said = {}
    for name in models:
        for path in (tmp_path / "work" / name).glob("*/*/answers-0.jsonl"):
            lines = map(json.loads, path.read_text().splitlines())
            said[name, path.parents[1].name] = {line["index"]: line["answer"] for line in lines}
    assert said["here", "choices"] == said["there", "choices"]
    assert said["here", "answers"] == said["there", "answers"]
    assert len(server.bodies) == 8
    assert {body["temperature"] for body in server.bodies} == {0}
    assert results.lines[-1].prompt_style == "server's"


def test_what_is_sent(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve()
    assert list(backend(server).stream([REQUEST], Sampling(temperature=0.0, max_tokens=7))) == SOMEONE
    assert server.bodies == [
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [{"type": "text", "text": "Who?"}]},
            ],
            "max_tokens": 7,
            "temperature": 0.0,
            "top_p": 1.0,
            "n": 1,
            "seed": 4,
        }
    ]
    assert server.keys == {"Bearer secret"}
    list(backend(server).stream([REQUEST], Sampling(temperature=0.5, top_p=0.9)))
    assert {key: server.bodies[1][key] for key in ("temperature", "top_p", "seed")} == {
        "temperature": 0.5, "top_p": 0.9, "seed": 4,
    }  # fmt: skip


def test_a_busy_server_is_asked_again(serve: Any) -> None:
    server = serve()
    server.failures = [503, 429]
    asked = backend(server)
    assert list(asked.stream([REQUEST], GREEDY)) == SOMEONE
    assert asked.usage.retries == 2


def test_a_refused_request_is_named_and_not_sent_again(serve: Any) -> None:
    server = serve()
    server.failures = [400]
    ((_, failed),) = backend(server).stream([REQUEST], GREEDY)
    assert isinstance(failed, Failure)
    assert failed.reason.startswith("HTTP 400: ")
    assert "busy" in failed.reason
    assert len(server.bodies) == 1
    server.failures = [500] * 4
    ((_, failed),) = backend(server).stream([REQUEST], GREEDY)
    assert failed == Failure("HTTP 500 (busy) (4 attempts)")


def test_an_unreachable_server_is_named_at_once(serve: Any) -> None:
    server = serve()
    url = server.url
    asked = backend(server)
    server.shutdown()
    server.server_close()
    with pytest.raises(UniDPOError, match=f"no OpenAI-compatible server answers at {url}: "):
        asked.check()


@pytest.fixture
def reply_with(chat_server: Any) -> Any:
    """A backend whose server gives one reply, as it is."""

    def start(**message: Any) -> OpenAIBackend:
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", **message}}
        server = chat_server(lambda body: {"choices": [choice]})
        return OpenAIBackend(OpenAIOptions("tiny", base_url=server.url, backoff=0.01, max_retries=1, timeout=5))

    return start


@pytest.mark.parametrize(
    ("message", "text"),
    [
        ({"content": "seven"}, "seven"),
        ({"content": ""}, ""),
        ({"content": "a \ud800 b"}, "a \ufffd b"),
    ],
)
def test_what_is_an_answer(reply_with: Any, message: dict[str, Any], text: str) -> None:
    ((_, (sample,)),) = reply_with(**message).stream([REQUEST], GREEDY)
    assert sample.text == text


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": None}, "empty answer"),
        ({"content": None, "refusal": "No."}, "refusal"),
        ({"content": None, "reasoning_content": "I think"}, "reasoning without an answer"),
        ({"content": 7}, "malformed reply"),
        ({"content": {"text": "seven"}}, "malformed reply"),
    ],
)
def test_what_is_a_fault(reply_with: Any, message: dict[str, Any], reason: str) -> None:
    asked = reply_with(**message)
    ((_, failed),) = asked.stream([REQUEST], GREEDY)
    assert failed == Failure(f"{reason} (2 attempts)")
    assert asked.usage.faults == {reason: 2}


@pytest.mark.parametrize("value", [float("nan"), "x", None, 2.0])
def test_a_log_probability_that_is_none_refutes_nothing(chat_server: Any, value: Any) -> None:
    top = [{"token": "Yes", "logprob": value}, {"token": "No", "logprob": -0.1}]
    content = [{"token": "No", "logprob": -0.1, "top_logprobs": top}]
    choice = {"index": 0, "message": {"role": "assistant", "content": "No"}, "logprobs": {"content": content}}
    server = chat_server(lambda body: {"choices": [choice]})
    asked = OpenAIBackend(OpenAIOptions("tiny", base_url=server.url, backoff=0.01, max_retries=0))
    (failed,) = asked.choice_logprobs([REQUEST], {"yes": ("Yes",), "no": ("No",)})
    assert failed == Failure("log-probability that is none (1 attempts)")


class Elsewhere(BaseHTTPRequestHandler):
    """Sends every request to another server, quotes the key in its errors, or drips."""

    mode = "redirect"
    target = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if self.mode == "redirect":
            self.send_response(302)
            self.send_header("Location", self.target)
            self.end_headers()
        elif self.mode == "quote":
            self.send_response(400)
            self.end_headers()
            self.wfile.write(json.dumps({"error": {"message": f"bad key {self.headers['Authorization']}"}}).encode())
        else:
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100):
                    self.wfile.write(b" ")
                    self.wfile.flush()
                    time.sleep(0.2)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    servers = []

    def start(mode: str, target: str = "") -> OpenAIBackend:
        server = ThreadingHTTPServer(("127.0.0.1", 0), type("Mode", (Elsewhere,), {"mode": mode, "target": target}))
        server.daemon_threads = True
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        return OpenAIBackend(OpenAIOptions("tiny", base_url=url, timeout=1, max_retries=0))

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_the_key_follows_no_redirect(elsewhere: Any, serve: Any) -> None:
    other = serve()
    with pytest.raises(UniDPOError, match="redirects to another address, which is not followed"):
        list(elsewhere("redirect", other.url + "/chat/completions").stream([REQUEST], GREEDY))
    assert not other.bodies
    assert not other.keys


def test_the_key_is_masked_where_a_server_quotes_it(elsewhere: Any) -> None:
    ((_, failed),) = elsewhere("quote").stream([REQUEST], GREEDY)
    assert "bad key Bearer ***" in failed.reason
    assert "secret" not in failed.reason


def test_the_timeout_bounds_a_server_that_drips(elsewhere: Any) -> None:
    started = time.monotonic()
    ((_, failed),) = elsewhere("drip").stream([REQUEST], GREEDY)
    assert failed == Failure("timeout (1 attempts)")
    assert time.monotonic() - started < 10
