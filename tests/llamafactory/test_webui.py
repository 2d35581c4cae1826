"""LlamaBoard in a real browser: `uni_dpo` with its settings, scores in the preview, a training by its command."""

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
from tests.report.conftest import NAMES, running_browser

pytest.importorskip("gradio", reason="LlamaBoard needs the package gradio")

FIND = """
const title = (one) => (one.closest('label') || one.closest('.block')).querySelector('span')?.innerText.trim();
const labelled = (label) => [...document.querySelectorAll('input,textarea')].find((one) =>
  [label, 'number input for ' + label].includes(one.getAttribute('aria-label')) || title(one) === label);
const say = (one, value) => { one.focus(); one.value = value;
  for (const event of ['input', 'change']) one.dispatchEvent(new Event(event, {bubbles: true})); one.blur(); };
const options = () => [...document.querySelectorAll('ul.options li')];
const button = (text) => [...document.querySelectorAll('button')].find((one) => one.innerText.trim().startsWith(text));
"""


def waits(condition: Any, seconds: float = 120.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the page did not come so far"
        time.sleep(0.2)
    return found


class Board:
    """The page, by the labels that a person reads."""

    def __init__(self, page: Any) -> None:
        self.page = page

    def run(self, script: str) -> Any:
        return self.page.run(f"(() => {{ {FIND} {script} }})()")

    def value(self, label: str) -> str:
        return self.run(f"return labelled({json.dumps(label)}).value")

    def fill(self, label: str, value: str) -> None:
        self.run(f"say(labelled({json.dumps(label)}), {json.dumps(value)})")
        self.page.settle()

    def options(self, label: str) -> list[str]:
        self.run(f"const one = labelled({json.dumps(label)}); one.blur(); one.focus()")
        self.page.settle()
        return self.run("return options().map((one) => one.innerText.replace('✓', '').trim())")

    def choose(self, label: str, value: str) -> None:
        waits(lambda: value in self.options(label))
        which = f"options().find((one) => one.innerText.replace('✓', '').trim() === {json.dumps(value)})"
        self.run(f"{which}.dispatchEvent(new MouseEvent('mousedown', {{bubbles: true}}))")
        self.run("document.activeElement.blur()")
        self.page.settle()

    def press(self, text: str) -> None:
        waits(lambda: self.run(f"const one = button({json.dumps(text)}); return !!one && !one.disabled"))
        self.run(f"button({json.dumps(text)}).click()")
        self.page.settle()


def shown_of(board: Board) -> str:
    return str(board.page.run("document.body.innerText"))


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Any]:
    if not any(map(shutil.which, NAMES)):
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    pytest.importorskip("websockets.sync.client", reason="needs the package websockets")
    with running_browser(tmp_path / "chromium") as found:
        yield found


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """The address of a page that `uni-dpo webui` serves from an empty folder."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    settings = {"GRADIO_SERVER_PORT": str(port), "BROWSER": "true", "GRADIO_ANALYTICS_ENABLED": "False"}
    environment = os.environ | settings | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with (tmp_path / "server.log").open("w") as log:
        command = [sys.executable, "-m", "uni_dpo.cli", "webui"]
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    address = f"http://127.0.0.1:{port}/"

    def answers() -> bool:
        assert process.poll() is None, (tmp_path / "server.log").read_text()
        try:
            with urllib.request.urlopen(address, timeout=30):
                return True
        except (urllib.error.URLError, TimeoutError):
            return False

    try:
        waits(answers)
        yield address
    finally:
        process.terminate()
        process.wait(30)


def test_a_training_by_the_page(
    browser: Any,
    served: str,
    tiny_qwen2_vl: Path,
    pair_data: Any,
    tmp_path: Path,
) -> None:
    browser.call("Emulation.setFocusEmulationEnabled", enabled=True)
    browser.call("Page.navigate", url=served)
    board = Board(browser)
    waits(lambda: board.run("return !!labelled('Loss type') && labelled('Language').value === 'en'"))
    board.press("RLHF configurations")
    assert "uni_dpo" in waits(lambda: board.options("Loss type"))
    defaults = {"uni_dpo_qual_eta": "0.7", "uni_dpo_tau_ref": "2", "uni_dpo_perf_gamma": "3"}
    defaults |= {"uni_dpo_nll_lambda": "0.001", "uni_dpo_tau_good": "2.5"}
    assert {name: board.value(name) for name in defaults} == defaults

    board.choose("Model name", "Custom")
    board.fill("Model path", str(tiny_qwen2_vl))
    board.choose("Chat template", "qwen2_vl")
    board.choose("Stage", "DPO")
    board.fill("Data dir", str(pair_data.folder))
    board.choose("Dataset", "mixed")
    board.choose("Compute type", "fp32")
    board.choose("Loss type", "uni_dpo")
    waits(lambda: board.value("Beta value") == "2")
    board.fill("uni_dpo_qual_eta", "0.5")
    board.fill("Extra arguments", json.dumps({"use_cpu": True, "max_steps": 2, "preprocessing_num_workers": 1}))

    board.press("Preview dataset")
    waits(lambda: "score_chosen" in shown_of(board))
    board.press("Close")
    board.press("Preview command")
    waits(lambda: "--uni_dpo_qual_eta 0.5" in shown_of(board))
    shown = shown_of(board)
    assert "uni-dpo train" in shown
    for part in ("--pref_loss uni_dpo", "--pref_beta 2", "--uni_dpo_tau_good 2.5", "--uni_dpo_nll_lambda 0.001"):
        assert part in shown

    board.press("Start")
    waits(lambda: "Finished" in shown_of(board) or "Failed" in shown_of(board), 300)
    (state,) = tmp_path.glob("saves/Custom/lora/*/trainer_state.json")
    log = json.loads(state.read_text())["log_history"]
    record = json.loads((state.parent / "uni_dpo" / "run.json").read_text())
    assert log[-1]["step"] == 2
    assert record["evidence"]["eta"] == 0.5


def test_without_gradio_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from uni_dpo.errors import UniDPOError
    from uni_dpo.llamafactory import launch

    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(UniDPOError, match=r'pip install "gradio'):
        launch.web_ui()
