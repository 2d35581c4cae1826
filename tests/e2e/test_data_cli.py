"""`uni-dpo data …` as a user runs it: what it prints, what it leaves on disk, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from uni_dpo.cli import main
from uni_dpo.data.tables.reading import iter_rows

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process; gives exit status, output and errors."""

    def start(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["uni-dpo", "data", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        said = capsys.readouterr()
        if isinstance(code, str):
            return 1, said.out, said.err + code
        return code or 0, said.out, said.err

    return start


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "id": f"r{number}",
        "instruction": f"<image>What is in picture {number}?",
        "chosen": "A red area.",
        "rejected": "A dog.",
        "score_chosen": 4.0,
        "score_rejected": 1.0 + number % 3,
        "images": [f"{number % 4}.png"],
    } | changes


@pytest.fixture
def data(tmp_path: Path) -> Path:
    for number in range(4):
        Image.new("RGB", (30, 20), (60 * number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "pairs.json").write_text(json.dumps([row(number) for number in range(12)]))
    return tmp_path


def test_check_is_quiet_about_good_data_and_ends_well(run, data) -> None:
    status, out, _ = run("check", data / "pairs.json")
    assert status == 0
    assert "usable rows" in out
    assert "Faults" not in out


def test_check_names_rows_and_fields_and_ends_badly(run, data) -> None:
    rows = [row(0), row(1, score_chosen=None), row(2, images=["none.png"])]
    (data / "bad.json").write_text(json.dumps(rows))
    words = ["check", data / "bad.json", "--html", data / "r.html", "--fix", data / "good.json"]
    status, out, _ = run(*words)
    assert status == 1
    assert "row 1" in out
    assert "score_chosen" in out
    assert "images[0]" in out
    assert "usable rows before the repair" in out
    assert (data / "r.html").read_text().startswith("<!doctype html>")
    assert len(list(iter_rows(data / "good.json"))) == 1
    assert len(list(iter_rows(data / "good.rejected.jsonl"))) == 2
    status, out, _ = run("check", data / "bad.json", "--json")
    assert status == 1
    assert json.loads(out)["fault_counts"] == {"score_null": 1, "image_missing": 1}


def test_what_cannot_be_done_is_one_line_without_a_traceback(run, data) -> None:
    for words, message in (
        (("check", data / "none.json"), "no such file"),
        (("convert", data / "none.json", data / "o.json"), "no such file or folder"),
        (("convert", data / "pairs.json", data / "o.json", "--format", "xml"), "no format 'xml'"),
        (("sample", data / "pairs.json", data / "pairs.json", "--count", 2), "is what is read"),
        (("split", data / "pairs.json", "--part", "a.json"), "write FILE=SHARE"),
        (("rebase-images", data / "pairs.json", "--root", data / "no"), "no such folder"),
        (("register", "pairs", data / "0.png", "--dataset-dir", data), "files of type '.png' are not read"),
    ):
        status, _, err = run(*words)
        assert status == 1
        assert err.startswith("error: ")
        assert message in err
        assert "Traceback" not in err


def test_convert_register_check_by_name(run, data, monkeypatch) -> None:
    monkeypatch.chdir(data)
    assert run("convert", "pairs.json", "messages.jsonl", "--to", "llamafactory-sharegpt")[0] == 0
    status, out, _ = run("register", "mine", "messages.jsonl", "--dataset-dir", ".")
    assert status == 0
    assert '"formatting": "sharegpt"' in out
    assert run("check", "mine", "--dataset-dir", ".")[0] == 0
    status, out, _ = run("stats", "mine", "--dataset-dir", ".", "--json")
    assert status == 0
    assert json.loads(out)["audit"]["pairs"] == 12
    assert "| `rlaif-v` | yes | yes |" in run("formats")[1]


def test_split_sample_merge_stance_calibrate_rebase(run, data) -> None:
    parts = ["--part", f"{data}/a.jsonl=0.75", "--part", f"{data}/b.jsonl=0.25"]
    status, out, _ = run("split", data / "pairs.json", *parts)
    assert status == 0
    assert f"{data}/a.jsonl: 9 rows" in out
    assert run("merge", data / "m.jsonl", data / "a.jsonl", data / "b.jsonl")[0] == 0
    assert run("sample", data / "m.jsonl", data / "s.jsonl", "--count", 5)[1].endswith("5 rows\n")
    assert "suggested uni_dpo_qual_eta" in run("calibrate", data / "m.jsonl", data / "c.jsonl", "--low", 1)[1]
    stances = [{"id": i, "prompt": "p", "support": "s", "oppose": "o"} for i in range(10)]
    (data / "labelled.json").write_text(json.dumps(stances))
    status, out, _ = run("stance", data / "labelled.json", data / "st.json", "--support-ratio", 0.1)
    assert "1 rows choose support" in out
    assert "are taken" not in out
    _, out, _ = run("stance", data / "labelled.json", data / "st.json", "--support-ratio", 0.1, "--count", 50)
    assert out.endswith("labelled.json has 10 rows, not 50: all of them are taken\n")
    (data / "old.json").write_text(json.dumps([row(0, images=["/their/pool/0.png"])]))
    status, out, _ = run("rebase-images", data / "old.json", "--root", data, "--anchor", "pool")
    assert "paths changed: 1" in out
    assert next(iter_rows(data / "old.json"))["images"] == [str(data / "0.png")]


COMMANDS = {
    "convert": ("convert", "{in}", "{out}"),
    "calibrate": ("calibrate", "{in}", "{out}"),
    "sample": ("sample", "{in}", "{out}", "--count", "50000"),
    "merge": ("merge", "{out}", "{in}"),
    "split": ("split", "{in}", "--part", "{out}=0.9", "--part", "{out}2.jsonl=0.1", "--by", "none"),
    "rebase": ("rebase-images", "{in}", "--root", "{root}", "--anchor", "their"),
    "fix": ("check", "{in}", "--no-images", "--fix", "{out}"),
}


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("large") / "large.jsonl"
    with path.open("w") as out:
        for number in range(60_000):
            out.write(json.dumps(row(number, images=[f"/x/their/{number % 7}.png"], chosen="word " * 40)) + "\n")
    return path


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_half_way_the_input_is_whole_and_no_output_has_its_name(name, large, tmp_path) -> None:
    source, output = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    os.link(large, source)
    before = source.stat()
    values = {"in": source, "out": output, "root": tmp_path}
    words = [word.format(**values) for word in COMMANDS[name]]
    program = "import sys; from uni_dpo.cli import main; sys.argv[1:1] = ['data']; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *words], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    )
    try:
        while process.poll() is None and not any(path.stat().st_size for path in tmp_path.glob(".*.tmp")):
            time.sleep(0.002)
        assert process.poll() is None, "ended before anything could be seen of its output"
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
        process.wait()
    after = source.stat()
    assert (after.st_ino, after.st_size, after.st_mtime_ns) == (before.st_ino, before.st_size, before.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir() if not path.name.endswith(".tmp")] == ["in.jsonl"]
