"""Questions about videos: what a server is sent, what pairs say, and what is refused before anything is asked."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from uni_dpo.demo.tiny_model import write_tiny_text_model
from uni_dpo.engine import run_engine
from uni_dpo.errors import UniDPOError

Row = dict[str, Any]


@pytest.fixture
def asked(tmp_path: Path, write_video: Callable[..., Path]) -> Callable[..., Path]:
    """`asked(rows)` writes questions beside `film.mp4` and `frame.png`."""
    write_video(tmp_path / "film.mp4", 4)
    Image.new("RGB", (56, 56), "red").save(tmp_path / "frame.png")

    def write(*rows: Row) -> Path:
        file = tmp_path / "questions.jsonl"
        file.write_text("".join(json.dumps({"question": "What happens?"} | row) + "\n" for row in rows))
        return file

    return write


@pytest.fixture
def judged(chat_server: Callable[..., Any], tmp_path: Path) -> Callable[..., tuple[Any, Path]]:
    """`judged(questions)` lets one server answer and judge; returns it and the work dir."""

    def run(questions: Path, **models: Any) -> tuple[Any, Path]:
        server = chat_server()
        model = {"backend": "openai", "model": "m", "base_url": server.url, "timeout": 5.0}
        spec = {"pipeline": "judge", "input": {"path": str(questions)}, "sample": {"n": 8}, "pairs": {"min_gap": 0.5}}
        run_engine(spec | {"models": {"sampler": model, "judge": model} | models}, tmp_path / "work")
        return server, tmp_path / "work"

    return run


def test_a_server_is_sent_files_and_pairs_name_them(
    asked: Callable[..., Path], judged: Callable[..., tuple[Any, Path]], tmp_path: Path
) -> None:
    server, work = judged(
        asked(
            {"id": "a", "video": "film.mp4"}, {"id": "b", "videos": ["film.mp4"] * 2, "image": "frame.png"}, {"id": "c"}
        )
    )
    film = "data:video/mp4;base64," + base64.b64encode((tmp_path / "film.mp4").read_bytes()).decode()
    parts = [body["messages"][-1]["content"] for body in server.bodies]
    kinds = [[part["type"] for part in content] for content in parts if not isinstance(content, str)]
    assert kinds.count(["video_url", "text"]) > 1, "the sampler and the judge are shown it"
    assert kinds.count(["image_url", "video_url", "video_url", "text"]) > 1
    sent = {part["video_url"]["url"] for content in parts for part in content if "video_url" in part}
    assert sent == {film}
    rows = json.loads((work / "dataset" / "pairs.json").read_text())
    path = str(tmp_path / "film.mp4")
    shown = {row["question_id"]: (row["instruction"], row["videos"]) for row in rows}
    assert shown == {
        "a": ("<video>What happens?", [path]),
        "b": ("<image><video><video>What happens?", [path, path]),
        "c": ("What happens?", []),
    }
    columns = json.loads((work / "dataset" / "dataset_info.json").read_text())["uni_dpo_engine"]["columns"]
    assert columns["videos"] == "videos"


@pytest.mark.parametrize(
    ("rows", "model", "said"),
    [
        (
            [{}, {"videos": [["frame.png"]]}],
            {},
            "row 1 .*'videos': a video as a list of frames, which the backend openai",
        ),
        (
            [{"video": "film.mp4"}],
            {"backend": "vllm"},
            "row 0 .*'videos': a video, which the backend vllm does not show",
        ),
        ([{"video": "film.mp4"}, {"id": 2, "videos": [["frame.png"]]}], {}, "row .*all files or all lists of frames"),
    ],
)
def test_what_a_backend_does_not_show_is_refused_by_row(
    asked: Callable[..., Path], judged: Callable[..., Any], rows: list[Row], model: Row, said: str
) -> None:
    models = {"sampler": {"model": "m", **model}} if model else {}
    with pytest.raises(UniDPOError, match=said) as caught:
        judged(asked(*rows), **models)
    assert "\n" not in str(caught.value)


def test_a_model_that_takes_no_videos_says_so(asked: Callable[..., Path], tmp_path: Path) -> None:
    model = str(write_tiny_text_model(tmp_path / "writer", "writer"))
    questions = str(asked({"video": "film.mp4", "answer": "a"}))
    spec = {"pipeline": "verifiable", "models": {"sampler": {"model": model}}, "input": {"path": questions}}
    with pytest.raises(UniDPOError, match=r"writer takes no videos, but its requests carry some"):
        run_engine(spec, tmp_path / "work")
