"""Real vLLM, in process and as a server, says what transformers says; `make test-vllm` runs this."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from uni_dpo.demo.digits import write_mcq, write_vqa
from uni_dpo.errors import UniDPOError
from uni_dpo.models.backends import make_backend


def test_an_adapter_and_a_missing_vllm_are_named(
    tiny_qwen2_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tiny_qwen2_vl)}))
    (tmp_path / "adapter_model.safetensors").write_bytes(b"\2" + bytes(7) + b"{}")
    with pytest.raises(UniDPOError, match="is a LoRA adapter: merge it with `llamafactory-cli export`"):
        make_backend({"backend": "vllm", "model": str(tmp_path)})
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UniDPOError, match=r"backend vllm: .*; install vllm, or use backend transformers"):
        make_backend({"backend": "vllm", "model": str(tiny_qwen2_vl)})


@pytest.fixture(scope="module")
def server(tiny_qwen2_vl: Path) -> Iterator[str]:
    pytest.importorskip("vllm")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = shutil.which("vllm", path=str(Path(sys.executable).parent))
    assert command is not None
    options = ["--dtype", "float32", "--enforce-eager", "--max-model-len", "1024", "--port", str(port)]
    process = subprocess.Popen([command, "serve", str(tiny_qwen2_vl), *options], stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            assert process.poll() is None, "vllm serve has ended"
            try:
                urllib.request.urlopen(f"{url}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                time.sleep(0.5)
        yield f"{url}/v1"
    finally:
        process.terminate()
        process.wait()


def whole(text: str) -> str:
    """Without the half character at the end that vLLM's server holds back and transformers shows."""
    return text.rstrip("\ufffd")


def test_vllm_answers_what_transformers_answers(
    kit: str, server: str, tiny_qwen2_vl: Path, base_checkpoint: Path, digits: dict, tmp_path: Path
) -> None:
    from uni_dpo.vlmeval.run import evaluate_tables

    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    seen = digits["held_out"][:8]
    tables = {
        "choices": write_mcq(seen, tmp_path / "mcq.tsv"),
        "answers": write_vqa(seen, tmp_path / "vqa.tsv"),
    }
    shared: dict[str, Any] = {"max_new_tokens": 12, "dtype": "float32"}
    engine = {"enforce_eager": True, "max_model_len": 1024}
    models = {
        "transformers": {"model_path": str(tiny_qwen2_vl), **shared},
        "vllm": {"model_path": str(tiny_qwen2_vl), "backend": "vllm", "vllm": engine, **shared},
        "served": {"model_path": str(tiny_qwen2_vl), "backend": "openai", "base_url": server, **shared},
        "base": {"model_path": str(base_checkpoint), **shared},
        "base in vllm": {"model_path": str(base_checkpoint), "backend": "vllm", "vllm": engine, **shared},
    }
    results = evaluate_tables(models, tables, tmp_path / "work")
    assert not results.failures
    said: dict[tuple[str, str], dict[str, str]] = {}
    for model in models:
        for table in tables:
            journal = next((tmp_path / "work" / model / table).glob("*/answers-0.jsonl"))
            lines = map(json.loads, journal.read_text().splitlines())
            said[model, table] = {line["index"]: line["answer"] for line in lines}
    for table in tables:
        assert len(said["vllm", table]) == 8
        assert said["vllm", table] == said["transformers", table]
        assert {i: whole(text) for i, text in said["served", table].items()} == {
            i: whole(text) for i, text in said["transformers", table].items()
        }
        assert said["base in vllm", table] == said["base", table]
