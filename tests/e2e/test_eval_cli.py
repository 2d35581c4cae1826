"""`uni-dpo eval` from the command line, and the overlay under VLMEvalKit's own `run.py`."""

import base64
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner, Result

from uni_dpo.cli.app import app
from uni_dpo.demo.digits import QUESTION, WORDS, Digit, write_mcq, write_vqa
from uni_dpo.errors import UniDPOError

ROOT = Path(__file__).parents[2]
RUN = "from uni_dpo.cli import main; main()"


def invoke(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, ["eval", *(str(argument) for argument in arguments)])


def fault(result: Result) -> str:
    """The one message that `uni-dpo` prints before it exits with 1."""
    assert isinstance(result.exception, UniDPOError), result.output
    return str(result.exception)


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    told = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=told, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def predictions(folder: Path) -> dict[str, dict[str, str]]:
    import pandas as pd

    found = {}
    for path in [*folder.glob("*/*/*/*.xlsx"), *folder.glob("*/*.xlsx")]:
        frame = pd.read_excel(path, dtype=str, keep_default_na=False)
        if "prediction" in frame and "hit" not in frame and "extracted" not in frame:
            found[path.name] = dict(zip(frame["index"], frame["prediction"], strict=True))
    return found


def write_config(path: Path, model: Path | str, data: dict[str, Any], **settings: Any) -> Path:
    entry = {"class": "Qwen2VLChat", "model_path": str(model), "max_new_tokens": 6, **settings}
    path.write_text(json.dumps({"model": {"tiny": entry}, "data": data}), encoding="utf-8")
    return path


@pytest.fixture
def own(tmp_path: Path, digits: dict[str, list[Digit]]) -> dict[str, Any]:
    seen = digits["held_out"][:6]
    write_mcq(seen, tmp_path / "mcq.tsv")
    write_vqa(seen, tmp_path / "vqa.tsv")
    return {"choices": {"path": "mcq.tsv"}, "answers": {"path": "vqa.tsv", "prompt": "plain"}}


def test_one_table_of_everything(tiny_qwen2_vl: Path, own: dict, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.json", tiny_qwen2_vl, own)
    result = invoke(config, "--work-dir", tmp_path / "out", "--batch-size", "4", "--limit", "5")
    assert result.exit_code == 0, result.output
    assert "choices" in result.output
    assert "exact_matching" in result.output
    with (tmp_path / "out" / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["benchmark"], row["rows"], row["limit"], row["data"]) for row in rows] == [
        ("choices", "5", "5", "own"),
        ("answers", "5", "5", "own"),
    ]
    only = invoke(config, "--work-dir", tmp_path / "only", "--data", "answers", "choices", "--limit", "1")
    assert only.exit_code == 0, only.output
    assert [line["benchmark"] for line in json.loads((tmp_path / "only" / "results.json").read_text())["results"]] == [
        "answers",
        "choices",
    ]


@pytest.fixture(scope="module")
def lmu_data(tmp_path_factory: pytest.TempPathFactory, digits: dict[str, list[Digit]]) -> Path:
    """Data in the folder where VLMEvalKit looks for it, read by its own classes."""
    folder = tmp_path_factory.mktemp("LMUData")
    rows = [
        {
            "index": i, "question": QUESTION, "A": WORDS[digit.label], "B": WORDS[(digit.label + 1) % 10],
            "answer": "AB"[i % 2], "image": base64.b64encode(digit.image.read_bytes()).decode(),
        }
        for i, digit in enumerate(digits["held_out"][:6])
    ]  # fmt: skip
    for name in ("digits_mcq", "digits_custom"):
        with (folder / f"{name}.tsv").open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="\t")
            writer.writeheader()
            writer.writerows(rows)
    return folder


def test_three_ways_in_give_the_same_predictions(
    tiny_qwen2_vl: Path, lmu_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The package, a checkout of its files (or the one that `UNI_DPO_VLMEVALKIT` names), the checkout's run.py."""
    import vlmeval

    package = Path(str(vlmeval.__file__)).parent
    named = os.environ.get("UNI_DPO_VLMEVALKIT")
    checkout = tmp_path / "VLMEvalKit"
    shutil.copytree(Path(named) / "vlmeval" if named else package, checkout / "vlmeval")
    shutil.copyfile((Path(named) if named else package) / "run.py", checkout / "run.py")
    data = {
        "digits_mcq": {"class": "ImageMCQDataset", "dataset": "digits_mcq"},
        "digits_custom": {"class": "CustomMCQDataset", "dataset": "digits_custom"},
    }
    config = write_config(tmp_path / "config.json", tiny_qwen2_vl, data)

    monkeypatch.setenv("LMUData", str(lmu_data))
    assert invoke(config, "--work-dir", tmp_path / "package").exit_code == 0
    expected = predictions(tmp_path / "package")
    assert sorted(expected) == ["tiny_digits_custom.xlsx", "tiny_digits_mcq.xlsx"]
    assert {len(rows) for rows in expected.values()} == {6}

    run([sys.executable, "-c", RUN, "eval", config, "--work-dir", "out", "--vlmevalkit", checkout], tmp_path)
    assert predictions(tmp_path / "out") == expected

    for overlay in ("VLMEvalKit", "src"):
        shutil.copytree(ROOT / overlay, checkout, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    # Nothing else installed: the checkout's own `uni_dpo` is the only one.
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    (hidden / "sitecustomize.py").write_text(
        "import os, sys\nsys.path = [p for p in sys.path if not os.path.isdir(os.path.join(p, 'uni_dpo'))]\n"
    )
    command = [sys.executable, "run.py", "--config", config, "--work-dir", tmp_path / "upstream"]
    run([*command, "--judge", "exact_matching"], checkout, PYTHONPATH=str(hidden))
    assert predictions(tmp_path / "upstream") == expected


def test_two_processes_share_the_rows(tiny_qwen2_vl: Path, own: dict, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.json", tiny_qwen2_vl, own)
    assert invoke(config, "--work-dir", tmp_path / "one").exit_code == 0
    (tmp_path / "run.py").write_text(RUN)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    printed = run([*launcher, "run.py", "eval", config, "--work-dir", "two"], tmp_path)
    assert printed.count("benchmark") == 1, "one process reports"
    assert predictions(tmp_path / "two") == predictions(tmp_path / "one")
    assert (tmp_path / "two" / "results.json").read_bytes() == (tmp_path / "one" / "results.json").read_bytes()
    for name in own:
        shares = sorted((tmp_path / "two" / "tiny" / name).glob("*/answers-*.jsonl"))
        assert [len(share.read_text().splitlines()) for share in shares] == [3, 3]


def test_a_run_that_was_killed_goes_on(tiny_qwen2_vl: Path, own: dict, tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.json", tiny_qwen2_vl, {"answers": own["answers"]}, max_new_tokens=60)
    command = [
        sys.executable,
        "-c",
        RUN,
        "eval",
        str(config),
        "--work-dir",
        str(tmp_path / "killed"),
        "--batch-size",
        "1",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not (journals := list((tmp_path / "killed").glob("tiny/answers/*/answers-0.jsonl"))):
            assert process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = journals[0].read_text().splitlines()
    assert 0 < len(finished) < 6
    assert not list((tmp_path / "killed").glob("results.*"))
    assert invoke(config, "--work-dir", tmp_path / "killed", "--batch-size", "1").exit_code == 0
    lines = journals[0].read_text().splitlines()
    assert lines[: len(finished)] == finished
    assert sorted(json.loads(line)["index"] for line in lines) == list("012345"), "each row was answered once"
    assert invoke(config, "--work-dir", tmp_path / "straight", "--batch-size", "1").exit_code == 0
    for name in ("results.json", "results.md", "results.csv"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "straight" / name).read_bytes()


def test_bad_input_is_one_clear_line(tiny_qwen2_vl: Path, own: dict, tmp_path: Path, digits: dict) -> None:
    text_only = tmp_path / "text_only"
    text_only.mkdir()
    (text_only / "config.json").write_text('{"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}')
    save_file({"weight": np.zeros(1)}, text_only / "model.safetensors")
    (tmp_path / "no_answer.tsv").write_text("index\tquestion\timage\n0\tWhich?\tx\n")
    corrupt = tmp_path / "corrupt.png"
    corrupt.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    rows = (tmp_path / "vqa.tsv").read_text().replace(str(digits["held_out"][2].image), str(corrupt))
    (tmp_path / "corrupt.tsv").write_text(rows)
    server = {"backend": "openai", "base_url": "http://127.0.0.1:9/v1"}
    cases: list[tuple[Path | str, dict[str, Any], dict[str, Any], str]] = [
        (tmp_path / "gone", own, {}, f"model '{tmp_path / 'gone'}' cannot be loaded; there is no such folder here"),
        (text_only, own, {}, "is of model_type 'qwen2' (Qwen2ForCausalLM, without a vision part)"),
        (tiny_qwen2_vl, {"x": {"path": "no_answer.tsv"}}, {}, "no column answer; it has index, question, image"),
        (tiny_qwen2_vl, {"x": {"path": "gone.tsv"}}, {}, "no such file"),
        (tiny_qwen2_vl, {"x": {"path": "corrupt.tsv"}}, {}, "x: 1 bad row: row 3 (index 2): "),
        (
            tiny_qwen2_vl,
            {"POPE": {"class": "ImageYesDataset"}},
            {},
            "POPE: VLMEvalKit has no dataset class 'ImageYesDa",
        ),
        (tiny_qwen2_vl, {"nine": {}}, {}, "nine: 'nine' is no benchmark of VLMEvalKit, and there is no "),
        (tiny_qwen2_vl, {"Video-MME": {"class": "VideoMME"}}, {}, "Video-MME: videos and conversations"),
        ("tiny", own, server, "no OpenAI-compatible server answers at http://127.0.0.1:9/v1: "),
    ]
    for model, data, settings, message in cases:
        config = write_config(tmp_path / "config.json", model, data, **settings)
        result = invoke(config, "--work-dir", tmp_path / "out")
        assert message in fault(result)
        assert "\n" not in fault(result)
        assert not list((tmp_path / "out").glob("results.*"))
    good = write_config(tmp_path / "config.json", tiny_qwen2_vl, own)
    assert "--batch-size is 'many'" in fault(invoke(good, "--work-dir", tmp_path / "out", "--batch-size", "many"))
    assert "unexpected argument 'POPE'" in fault(invoke(good, "POPE", "--work-dir", tmp_path / "out"))


def test_a_failed_benchmark_is_named_and_the_status_is_not_zero(
    tiny_qwen2_vl: Path, own: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from uni_dpo.vlmeval.kit import import_kit

    import_kit()
    from uni_dpo.vlmeval.own_data import OwnMCQ

    def broken(self: object, *arguments: object, **named: object) -> None:
        raise KeyError("no_such_column")

    monkeypatch.setattr(OwnMCQ, "evaluate", broken)
    config = write_config(tmp_path / "config.json", tiny_qwen2_vl, own)
    result = invoke(config, "--work-dir", tmp_path / "out", "--limit", "2")
    assert result.exit_code == 1
    assert "tiny on choices failed: VLMEvalKit's evaluate failed: KeyError" in " ".join(result.output.split())
