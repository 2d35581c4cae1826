"""`uni-dpo align` from questions to a chosen model: killed at any moment, with a judge that goes away, from nothing."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import yaml

pytestmark = pytest.mark.slow
PATIENCE = 900.0
"""Seconds that a test waits for something that has to happen, on a machine with much else to do."""
OF_THE_MOMENT = {
    "made", "memory_gib", "pairs_per_second", "tokens_per_second", "resume_from_checkpoint",
    "total_flos", "train_loss", "train_runtime", "train_samples_per_second", "train_steps_per_second",
}  # fmt: skip
"""What a page says of times; the last five count from where a training was taken up again."""
KILLS = int(os.environ.get("UNI_DPO_KILLS", "1"))


@pytest.fixture
def raw(tmp_path: Path, tiny_qwen2_vl: Path, digits: dict, chat_server: Any) -> dict[str, Any]:
    """Two rounds of the tiny model under a judge that grades by the words, over HTTP."""
    files = {}
    for name, split, count in (
        ("questions", "preference", 10),
        ("validation", "validation", 6),
        ("test", "held_out", 6),
    ):
        rows = [
            {"id": digit.image.stem, "question": "Which digit?", "images": [str(digit.image)], "answer": digit.answer}
            for digit in digits[split][:count]
        ]
        path = tmp_path / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        files[name] = str(path)
    judge = {"backend": "openai", "model": "m", "base_url": chat_server().url, "max_retries": 1, "backoff": 0.1}
    return {
        "model": str(tiny_qwen2_vl),
        **files,
        "rounds": 2,
        "go_on": "always",
        "reference": "base",
        "engine": {
            "pipeline": "judge",
            "models": {"judge": judge},
            "sample": {"n": 4, "max_tokens": 6},
            "pairs": {"min_gap": 1.0, "allow_cut_answers": True},
            "batch_size": 2,
            "max_failed_share": 0.5,
        },
        "calibrate": {"low": 0, "high": 5},
        "train": {
            "finetuning_type": "full",
            "cutoff_len": 128,
            "learning_rate": 1e-3,
            "max_steps": 4,
            "per_device_train_batch_size": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "preprocessing_num_workers": 1,
        },
        "evaluate": {"by": "score", "max_tokens": 6},
    }


def write(raw: dict[str, Any], folder: Path, name: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**raw, "work_dir": str(folder / name)}))
    return path


def start(*words: str | Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "uni_dpo.cli", "align", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )


def run(*words: str | Path) -> str:
    process = start(*words)
    printed, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, printed
    return printed


def stages(work: Path) -> dict[str, Any]:
    file = work / "state.json"
    return dict(json.loads(file.read_text())["stages"]) if file.is_file() else {}


def wait_for(work: Path, stage: str, process: subprocess.Popen[str], patience: float = PATIENCE) -> None:
    """Wait until a stage has begun, or the process has ended, or for so many seconds."""
    deadline = time.monotonic() + patience
    while stage not in stages(work) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)


def left(work: Path) -> dict[str, Any]:
    """What a run is judged by: weights, pairs, summary and page, without the name of the work dir and times."""
    files = [*work.glob("round-*/model/**/model.safetensors"), *work.glob("round-*/engine/dataset/*.json")]
    found: dict[str, Any] = {str(path.relative_to(work)): path.read_bytes() for path in sorted(files)}
    for name in ("summary.json", "summary.md"):
        found[name] = (work / name).read_text().replace(str(work), "WORK")
    return found | {"report.html": page((work / "report.html").read_text().replace(str(work), "WORK"))}


def page(html: str) -> tuple[str, Any]:
    """A page without what its data say of times and of the machine, and of where a training was taken up again."""
    before, mark, rest = html.partition('<script type="application/json" id="data">')
    text, _, after = rest.partition("</script>")

    def timeless(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: timeless(item) for key, item in value.items() if key not in OF_THE_MOMENT}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    return before + mark + after, timeless(json.loads(text))


def test_killed_at_random_it_ends_with_the_same_models_and_results(raw: dict[str, Any], tmp_path: Path) -> None:
    """As often as `UNI_DPO_KILLS` says; every other time the stage at work and what it started are killed too."""
    calm, killed = write(raw, tmp_path, "calm"), write(raw, tmp_path, "killed")
    printed = run(calm)
    assert "| round 2 |" in printed
    took = {name: entry["seconds"] for name, entry in stages(tmp_path / "calm").items()}
    draw = random.Random(0)
    ends = list(zip(took, accumulate(took.values()), strict=True))
    moments = sorted(draw.uniform(0.0, sum(took.values())) for _ in range(KILLS))
    stops = [next((name for name, end in ends if moment <= end), "report") for moment in moments]
    for place, stage in enumerate(stops):
        process = start(killed)
        wait_for(tmp_path / "killed", stage, process)
        after = next((other for other in stops[place:] if other != stage), "summary")
        wait_for(tmp_path / "killed", after, process, draw.uniform(0.0, took[stage]))
        assert process.poll() is None, f"it ended before it was killed in {stage}"
        (os.killpg if draw.random() < 0.5 else os.kill)(process.pid, signal.SIGKILL)
        process.communicate()
    run(killed)
    assert left(tmp_path / "killed") == left(tmp_path / "calm")
    again = run(killed)
    assert again.count(" s  ") == 0  # nothing was left to do
    process = start(killed, "train.learning_rate=1e-4")
    said, _ = process.communicate()
    assert process.returncode == 1
    assert "1/train: learning_rate was 0.001, is 0.0001" in said
    assert "--from 1/train" in said


@pytest.mark.nightly
def test_a_judge_that_goes_away_is_waited_for(raw: dict[str, Any], tmp_path: Path, chat_server: Any) -> None:
    calm = write(raw | {"rounds": 1}, tmp_path, "calm")
    run(calm, "--until", "1/pair")
    gone = {"until": 0.0}
    asked: list[float] = []

    def fault(body: dict[str, Any], attempt: int) -> int | None:
        asked.append(time.monotonic())
        if len(asked) == 30:
            gone["until"] = time.monotonic() + 5.0
        return 503 if time.monotonic() < gone["until"] else None

    flaky = {**raw, "rounds": 1, "attempts": 20, "pause": 1.0}
    judge = flaky["engine"]["models"]["judge"] | {"base_url": chat_server(fault=fault).url}
    flaky["engine"] = flaky["engine"] | {"models": {"judge": judge}}
    printed = run(write(flaky, tmp_path, "flaky"), "--until", "1/pair")
    assert "trying again in 1 s" in printed
    pairs = [(tmp_path / name / "round-1/engine/dataset/pairs.json").read_text() for name in ("calm", "flaky")]
    assert pairs[0] == pairs[1]


MORTAL = """
import os, sys, threading
from collections import Counter
sys.path[:0] = sys.argv[3:]
from conftest import ChatServer, scripted
asked = Counter()
def fault(body, attempt):
    asked["requests"] += 1
    if asked["requests"] == int(sys.argv[2]):
        os._exit(1)
ChatServer(scripted, fault, port=int(sys.argv[1]))
print("up", flush=True)
threading.Event().wait()
"""


@pytest.fixture
def mortal_judge() -> Iterator[Callable[[int, int], subprocess.Popen[str]]]:
    """Start a judge in a process of its own, which dies at the request of that number."""
    judges = []

    def live(port: int, dies_at: int) -> subprocess.Popen[str]:
        tests = Path(__file__).parents[1]
        words = [sys.executable, "-c", MORTAL, str(port), str(dies_at), str(tests), str(tests / "servers")]
        judges.append(subprocess.Popen(words, stdout=subprocess.PIPE, text=True))
        assert judges[-1].stdout.readline() == "up\n"
        return judges[-1]

    yield live
    for judge in judges:
        judge.kill()
        judge.communicate()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.mark.nightly
@pytest.mark.parametrize("attempts", [1, 100])
def test_a_judge_that_dies_and_comes_back(
    raw: dict[str, Any], tmp_path: Path, mortal_judge: Callable[[int, int], subprocess.Popen[str]], attempts: int
) -> None:
    """Its process dies while answers are scored: the run waits for it, or ends and the same command goes on."""
    until = ("--until", "1/pair")
    run(write(raw, tmp_path, "calm"), *until)
    port = free_port()
    judge = raw["engine"]["models"]["judge"] | {"base_url": f"http://127.0.0.1:{port}/v1"}
    engine = raw["engine"] | {"models": {"judge": judge}}
    evaluate = {"by": "answers", "grader": "exact"}  # so that the scoring alone asks the judge
    file = write(raw | {"engine": engine, "evaluate": evaluate, "attempts": attempts, "pause": 1.0}, tmp_path, "mortal")
    first = mortal_judge(port, 12)
    process = start(file, *until)
    while first.poll() is None and process.poll() is None:
        time.sleep(0.05)
    assert first.returncode == 1, process.communicate()
    if attempts == 1:
        said, _ = process.communicate(timeout=PATIENCE)
        assert process.returncode == 1
        assert "Traceback" not in said
        assert "error: 1/score ended with status 1" in said
        assert "no connection" in said
        assert "run the same command again when the cause is removed" in said
        process = start(file, *until)
    else:
        assert process.stdout is not None
        while "trying again in 1 s" not in (line := process.stdout.readline()):
            assert line
    kept = (tmp_path / "mortal/round-1/engine/1-reward.jsonl").read_text()
    mortal_judge(port, 0)
    said, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, said
    assert (tmp_path / "mortal/round-1/engine/1-reward.jsonl").read_text().startswith(kept)
    assert '"score"' in kept
    pairs = [(tmp_path / name / "round-1/engine/dataset/pairs.json").read_text() for name in ("calm", "mortal")]
    assert pairs[0] == pairs[1]


def test_from_an_empty_folder_to_the_end_in_four_commands(
    tmp_path: Path, tiny_qwen2_vl: Path, digits: dict, chat_server: Any
) -> None:
    """Sixty questions with images, the tiny model, and a judge over HTTP."""
    mine = tmp_path / "mine"
    (mine / "images").mkdir(parents=True)
    rows = []
    for digit in digits["preference"][:60]:
        (mine / "images" / digit.image.name).write_bytes(digit.image.read_bytes())
        rows.append({"id": digit.image.stem, "image": f"images/{digit.image.name}", "question": "Which digit?"})
    (mine / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def command(*words: str) -> str:
        line = [sys.executable, "-m", "uni_dpo.cli", *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    command("init", "mine", "--model", str(tiny_qwen2_vl), "--judge", chat_server().url)
    assert "FAULT" not in command("doctor", "mine/align.yaml")
    small = (
        "rounds=1", "engine.sample.max_tokens=6", "engine.pairs.allow_cut_answers=true", "evaluate.max_tokens=6",
        "engine.max_failed_share=0.5", "train.num_train_epochs=1",
    )  # fmt: skip
    assert "36 questions × 8 answers" in command("align", "mine/align.yaml", *small, "--plan")
    printed = command("align", "mine/align.yaml", *small)
    assert "# Before and after" in printed
    summary = json.loads((mine / "outputs" / "summary.json").read_text())
    assert summary["rounds"][0]["pairs"] > 0
    assert summary["test"][0]["model"] == "before"
    assert len({len(path.read_text().splitlines()) for path in (mine / "outputs/questions").glob("[tv]*.jsonl")}) == 2
