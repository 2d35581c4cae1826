"""What every test may ask for: tiny checkpoints and the digits, made once per process, and a local chat server."""

import base64
import hashlib
import importlib.util
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from local_server import LocalServer

from uni_dpo.engine import Question

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave to `make nightly` what repeats, at more cost, what another test shows."""
    if "UNI_DPO_NIGHTLY" not in os.environ:
        for item in items:
            if item.get_closest_marker("nightly"):
                item.add_marker(pytest.mark.skip(reason="`make nightly` runs it"))


@pytest.fixture(scope="session")
def tiny_qwen2_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2-VL checkpoint with the instruct template."""
    from uni_dpo.demo.tiny_model import write_tiny_qwen2_vl

    return write_tiny_qwen2_vl(tmp_path_factory.mktemp("models") / "tiny_qwen2_vl")


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Scikit-learn's digits as image files: split → list of `Digit`."""
    from uni_dpo.demo.digits import write_digits
    from uni_dpo.demo.tiny_model import IMAGE_SIDE

    return write_digits(tmp_path_factory.mktemp("digits"), side=IMAGE_SIDE)


@pytest.fixture(scope="session")
def digit_questions(digits: dict) -> dict[str, list[Question]]:
    """The digits as questions with references: split → list."""
    from uni_dpo.demo.digits import QUESTION

    return {
        split: [Question(digit.image.stem, QUESTION, (str(digit.image),), digit.answer) for digit in part]
        for split, part in digits.items()
    }


@pytest.fixture(scope="session")
def warm_policy(
    tmp_path_factory: pytest.TempPathFactory, tiny_qwen2_vl: Path, digit_questions: dict[str, list[Question]]
) -> Path:
    """A checkpoint after 115 steps of 32 right answers: it has learnt something and has something left to learn."""
    import random

    import torch

    from uni_dpo.online import RewardOptions
    from uni_dpo.ppo.config import PPOConfig
    from uni_dpo.ppo.policy import answer_logps, collate, encode, load_policy

    config = PPOConfig(
        str(tiny_qwen2_vl), "", RewardOptions(function="exact"), finetuning="full", freeze_vision_tower=False
    )
    policy, _, processor = load_policy(config)
    asked = digit_questions["train"]
    prompts = [encode(question, processor) for question in asked]
    end = processor.tokenizer.eos_token
    answers = [processor.tokenizer(question.reference + end)["input_ids"] for question in asked]
    optimizer = torch.optim.AdamW(policy.model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=115)
    draw = random.Random(0)
    for _ in range(115):
        rows = draw.sample(range(len(asked)), 32)
        inputs, labels = collate(
            [prompts[row] for row in rows], [answers[row] for row in rows], processor.tokenizer.pad_token_id
        )
        logps, _ = answer_logps(policy.model, inputs, labels, 1.0)
        (-logps.sum() / (labels >= 0).sum()).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    folder = tmp_path_factory.mktemp("policy")
    policy.model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only reward model with one label, untrained: what it says is arbitrary, and the same each time."""
    from uni_dpo.demo.tiny_model import write_tiny_text_model

    return write_tiny_text_model(tmp_path_factory.mktemp("models") / "classifier", "reward_model", spread=0.5)


@pytest.fixture(scope="session")
def base_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen2-VL checkpoint with the base checkpoints' template."""
    from uni_dpo.demo.tiny_model import BASE_TEMPLATE, write_tiny_qwen2_vl

    return write_tiny_qwen2_vl(tmp_path_factory.mktemp("models") / "base", template=BASE_TEMPLATE)


FAMILIES = {
    "llava": ("llama", "llava"),
    "llava_next": ("llama", "llava_next"),
    "llava_onevision": ("llava_onevision", "llava_next_qwen"),
    "internvl": ("internvl", "intern_vl"),
    "gemma3": ("gemma3", "gemma3"),
    "glm4v": ("glm4v", "glm4v"),
    "qwen2_5_vl": ("qwen", "qwen2_vl"),
    "qwen3_vl": ("qwen", "qwen3_vl_nothink"),
    "gemma4": ("gemma4", "gemma4"),
    "minicpmv4_6": ("minicpmv4_6", "minicpm_v_4_6"),
}
"""`model_type` → the special tokens of its tiny checkpoint, and LlamaFactory's template."""


@pytest.fixture(scope="session", params=FAMILIES)
def family_checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random checkpoint of each family of vision-language models, named after its `model_type`."""
    import transformers

    if request.param not in transformers.CONFIG_MAPPING:
        pytest.skip(f"transformers {transformers.__version__} has no {request.param}")
    place = Path(__file__).parent / "llamafactory" / "checkpoints.py"
    spec = importlib.util.spec_from_file_location("family_checkpoints", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("families") / request.param
    checkpoint: Path = module.write_checkpoint(request.param, FAMILIES[request.param][0], folder)
    return checkpoint


@pytest.fixture(scope="session")
def family_template(family_checkpoint: Path) -> str:
    """LlamaFactory's template of `family_checkpoint`."""
    return FAMILIES[family_checkpoint.name][1]


@pytest.fixture(scope="session")
def unlike_images(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two images of unlike sizes, of which a tiling model makes unlike many tiles."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("unlike")
    for name, size in (("red", (64, 40)), ("blue", (30, 60))):
        Image.new("RGB", size, name).save(folder / f"{name}.png")
    return str(folder / "red.png"), str(folder / "blue.png")


@pytest.fixture
def sequences_run(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], list[int]]:
    """`sequences_run(model)` is a list to which every run of its language model adds how many sequences it has."""

    def watch(model: Any) -> list[int]:
        counts: list[int] = []
        layer = model.model.language_model.layers[0]
        forward = layer.forward

        def counted(*given: Any, **named: Any) -> Any:
            counts.append(len(given[0] if given else named["hidden_states"]))
            return forward(*given, **named)

        monkeypatch.setattr(layer, "forward", counted)
        return counts

    return watch


Brain = Callable[[dict[str, Any]], dict[str, Any]]
"""Request body → the fields `choices`, and whatever else the reply should hold."""


class ChatServer(LocalServer):
    """Speaks OpenAI's chat API over real HTTP.

    `brain` answers; `fault` may name a way to fail for a request: an HTTP status, alone or with what is
    said, `timeout`, `truncated`, `empty`, `refusal`, `no_choices`, `html`.
    """

    def __init__(self, brain: Brain, fault: Callable[[dict[str, Any], int], Any], port: int = 0) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.seen: Counter[str] = Counter()
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    outer.bodies.append(body)
                    key = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
                    attempt = outer.seen[key]
                    outer.seen[key] += 1
                trouble = fault(body, attempt)
                if isinstance(trouble, int):
                    return self._send({"error": {"message": "out of order", "code": None}}, trouble)
                if isinstance(trouble, tuple):
                    return self._send(trouble[1], trouble[0])
                if trouble == "timeout":
                    time.sleep(1.0)
                reply = {
                    "id": "x",
                    "object": "chat.completion",
                    "created": 0,
                    "model": body["model"],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
                    **brain(body),
                }
                for choice in reply["choices"]:
                    if trouble == "empty":
                        choice["message"]["content"] = ""
                    if trouble == "refusal":
                        choice["message"].update(content=None, refusal="I would rather not.")
                if trouble == "no_choices":
                    reply["choices"] = []
                return self._send(reply, 200, str(trouble))

            def _send(self, reply: dict[str, Any], status: int, trouble: str = "") -> None:
                data = json.dumps(reply).encode()
                if trouble == "truncated":
                    data = data[: len(data) // 2]
                if trouble == "html":
                    data = b"<html>a proxy was here</html>"
                try:
                    self.send_response(status)
                    self.send_header("Content-Type", "text/html" if trouble == "html" else "application/json")
                    self.send_header("Content-Length", str(len(data)))
                    self.end_headers()
                    self.wfile.write(data)
                except OSError:
                    pass  # the client was killed or did not wait

        super().__init__(Handler, port)


def prompt_of(body: dict[str, Any]) -> str:
    content = body["messages"][0]["content"]
    return content if isinstance(content, str) else content[-1]["text"]


def said(*texts: str) -> dict[str, Any]:
    """A reply with one choice per text."""
    return {
        "choices": [
            {"index": index, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}
            for index, text in enumerate(texts)
        ]
    }


def scripted(body: dict[str, Any]) -> dict[str, Any]:
    """Plays every part of every pipeline, by what the built-in prompts say; the same request, the same reply."""
    prompt = prompt_of(body)
    draw = int(hashlib.sha256(f"{prompt}{body.get('seed')}".encode()).hexdigest(), 16)
    if body.get("logprobs"):
        yes = -0.01 if draw % 3 else -4.0
        top = [{"token": "Yes", "logprob": yes}, {"token": " no", "logprob": -4.01 - yes}]
        return {
            "choices": [
                {
                    **said("Yes")["choices"][0],
                    "logprobs": {"content": [{"token": "Yes", "logprob": yes, "top_logprobs": top}]},
                }
            ]
        }
    if "separate facts" in prompt:
        answer = prompt.split("Answer: ")[1].split("\n\n")[0]
        return said("\n".join(f"- {claim.strip()}." for claim in answer.split(".") if claim.strip()))
    if prompt.startswith("Turn the statement"):
        statement = prompt.split("Statement: ")[1].splitlines()[0]
        return said(f"Is it true that {statement.rstrip('.')}?")
    if "Score: <number>" in prompt:
        return said(f"Looks plausible.\nScore: {draw % 11}")
    if "Verdict: tie" in prompt:
        return said(f"Hard to say.\nVerdict: {('A', 'B', 'tie')[draw % 3]}")
    colours = ("red", "green", "blue", "grey")
    return said(
        *(f"The box is {colours[(draw + i) % 4]}." + " It is wet." * ((draw >> i) % 2) for i in range(body.get("n", 1)))
    )


@pytest.fixture
def chat_server() -> Iterator[Callable[..., ChatServer]]:
    """Start servers; all of them end with the test."""
    servers: list[ChatServer] = []

    def start(brain: Brain = scripted, fault: Callable[..., Any] = lambda body, attempt: None) -> ChatServer:
        servers.append(ChatServer(brain, fault))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture(scope="session")
def questions(digits: dict) -> list[Question]:
    """Twelve questions about real images, with their answers."""
    return [
        Question(digit.image.stem, "Which digit is written here?", (str(digit.image),), digit.answer)
        for digit in digits["preference"][:12]
    ]


@pytest.fixture
def questions_file(questions: list[Question], tmp_path: Path) -> Path:
    """The same questions as a JSONL file."""
    path = tmp_path / "questions.jsonl"
    rows = [
        {"question_id": q.id, "question": q.text, "image_path": q.images[0], "answer": q.reference} for q in questions
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def scripted_brain() -> Brain:
    """What `chat_server` answers with unless told otherwise."""
    return scripted


@pytest.fixture
def served(tmp_path: Path) -> Callable[[Any], Brain]:
    """Turn a `transformers` backend into a server's brain."""
    return lambda local: serve_model(local, tmp_path)


def serve_model(local: Any, folder: Path) -> Brain:
    """Answer like vLLM's server does, from a model in this process."""

    from uni_dpo.models.backends import Request, Sampling

    lock = threading.Lock()

    def answer(body: dict[str, Any]) -> dict[str, Any]:
        with lock:  # one model, many request threads
            return reply_to(body)

    def reply_to(body: dict[str, Any]) -> dict[str, Any]:
        messages = body["messages"]
        content = messages[0]["content"]
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        paths = []
        for part in parts[:-1]:
            data = base64.b64decode(part["image_url"]["url"].partition(",")[2])
            paths.append(folder / f"{hashlib.sha256(data).hexdigest()}.png")
            paths[-1].write_bytes(data)
        request = Request(parts[-1]["text"], tuple(map(str, paths)), seed=body["seed"])
        inputs = local._encode([request])
        usage = {"prompt_tokens": inputs["input_ids"].shape[1], "completion_tokens": 1, "total_tokens": 1}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "x"}}
        reply = {"usage": usage, "choices": [choice]}
        if body.get("logprobs"):
            top = first_tokens_of(local, inputs)
            choice["logprobs"] = {
                "content": [{"token": "x", "logprob": 0.0, "top_logprobs": top[: body["top_logprobs"]]}]
            }
        elif "prompt_logprobs" in body:
            assert body["continue_final_message"] is True
            assert body["add_generation_prompt"] is False
            reply["prompt_logprobs"] = prompt_logprobs_of(local, inputs, messages[1]["content"])
        else:
            sampling = Sampling(body.get("n", 1), body["temperature"], max_tokens=body["max_tokens"])
            reply.update(said(*(sample.text or "x" for sample in local.generate([request], sampling)[0])))
        return reply

    return answer


def first_tokens_of(local: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    import torch

    with torch.inference_mode():
        logprobs = local.model(**inputs).logits[0, -1].log_softmax(-1)
    return [
        {"token": local.tokenizer.decode([t]), "logprob": float(logprobs[t])} for t in logprobs.argsort(descending=True)
    ]


def prompt_logprobs_of(local: Any, inputs: dict[str, Any], answer: str) -> list[dict[str, Any] | None]:
    import torch

    from uni_dpo.models.backends.transformers import _append

    ids = local._token_ids(answer)
    joined = _append(inputs, [ids], 0)
    with torch.inference_mode():
        logprobs = local.model(**joined).logits[0].log_softmax(-1)
    tokens = joined["input_ids"][0].tolist()
    return [None, *({str(t): {"logprob": float(logprobs[i, t])}} for i, t in enumerate(tokens[1:]))]


@pytest.fixture(scope="session")
def write_video() -> Callable[..., Path]:
    """`write_video(path)` writes noise, or a grey that grows lighter, by the package that LlamaFactory uses."""
    av = pytest.importorskip("av")
    import numpy as np

    def write(
        path: Path, frames: int = 12, size: tuple[int, int] = (64, 48), rate: int = 4, *, noise: bool = False
    ) -> Path:
        draw = np.random.default_rng(0)
        with av.open(str(path), "w") as container:
            stream = container.add_stream("mpeg4", rate=rate)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for at in range(frames):
                shape = (size[1], size[0], 3)
                picture = draw.integers(0, 256, shape, np.uint8) if noise else np.full(shape, 10 * at % 255, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return path

    return write
