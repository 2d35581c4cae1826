"""Against a real server: HTTP, JSON, images in the request, and transformers behind it."""

import base64
import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import write_mcq, write_vqa
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import Request, Sample, Sampling
from uni_dpo.vlmeval import openai
from uni_dpo.vlmeval.openai import OpenAIBackend
from uni_dpo.vlmeval.settings import ModelSettings

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
    told = {"model_path": "tiny", "backend": "openai", "base_url": server.url, **settings}
    return OpenAIBackend(ModelSettings.parse(told))


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
            "temperature": 0,
        }
    ]
    assert server.keys == {"Bearer secret"}
    list(backend(server).stream([REQUEST], Sampling(temperature=0.5, top_p=0.9)))
    assert {key: server.bodies[1][key] for key in ("temperature", "top_p", "seed")} == {
        "temperature": 0.5, "top_p": 0.9, "seed": 4,
    }  # fmt: skip


def test_a_busy_server_is_asked_again(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(openai.time, "sleep", pauses.append)
    server = serve()
    server.failures = [503, 429]
    assert list(backend(server).stream([REQUEST], GREEDY)) == SOMEONE
    assert pauses == [1, 2]


def test_a_refusal_is_named(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai.time, "sleep", lambda seconds: None)
    server = serve()
    server.failures = [400]
    with pytest.raises(UniDPOError, match=r"gave no answer: HTTP 400: .*busy"):
        list(backend(server).stream([REQUEST], GREEDY))
    assert len(server.bodies) == 1, "the same bad request is not sent again"
    server.failures = [500] * openai.ATTEMPTS
    with pytest.raises(UniDPOError, match="HTTP 500"):
        list(backend(server).stream([REQUEST], GREEDY))


def test_an_unreachable_server_is_named_at_once(serve: Any) -> None:
    server = serve()
    url = server.url
    server.shutdown()
    server.server_close()
    with pytest.raises(UniDPOError, match=f"no OpenAI-compatible server answers at {url}: .*refused"):
        OpenAIBackend(ModelSettings.parse({"model_path": "tiny", "backend": "openai", "base_url": url}))
