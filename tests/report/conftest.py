"""A real headless Chromium, spoken to by its own protocol; tests that need it are skipped where there is none."""

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")


class Browser:
    """One page in one browser.

    Attributes:
        events: what the browser reported: requests, exceptions, console messages.
    """

    def __init__(self, socket: Any) -> None:
        self._socket, self._number = socket, 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its answer."""
        self._number += 1
        self._socket.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=60))
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self.events.append(message)

    def open(self, page: Path, width: int = 1200, height: int = 900, *, mobile: bool = False) -> None:
        """Open a file and wait until it is drawn."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=mobile)
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        end = time.monotonic() + 60
        while not self.run("document.readyState === 'complete' && !!document.querySelector('h1')"):
            assert time.monotonic() < end
            time.sleep(0.05)
        self.settle()

    def run(self, expression: str) -> Any:
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def settle(self) -> None:
        """Wait until the page has been painted again."""
        self.run("new Promise((done) => requestAnimationFrame(() => setTimeout(() => done(true), 30)))")

    def complaints(self) -> list[dict[str, Any]]:
        """Exceptions and errors that the page met with since it was opened."""
        bad = []
        for event in self.events:
            if event["method"] == "Runtime.exceptionThrown":
                bad.append(event)
            if event["method"] == "Log.entryAdded" and event["params"]["entry"]["level"] == "error":
                bad.append(event)
            if event["method"] == "Runtime.consoleAPICalled" and event["params"]["type"] in ("error", "assert"):
                bad.append(event)
        return bad

    def requests(self) -> list[str]:
        """The addresses that were asked for since the page was opened, itself and data in it left out."""
        sent = [event["params"] for event in self.events if event["method"] == "Network.requestWillBeSent"]
        addresses = [one["request"]["url"] for one in sent[1:]]
        return [address for address in addresses if not address.startswith(("data:", "blob:"))]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    if not any(map(shutil.which, NAMES)):
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    pytest.importorskip("websockets.sync.client", reason="needs the package websockets")
    with running_browser(tmp_path_factory.mktemp("chromium")) as found:
        yield found


@contextmanager
def running_browser(profile: Path) -> Iterator[Browser]:
    """A headless Chromium with its files in `profile`; it ends with the block."""
    from websockets.sync.client import connect

    program = next(found for name in NAMES if (found := shutil.which(name)))
    flags = ["--headless=new", "--disable-gpu", "--no-first-run", "--remote-debugging-port=0"]
    flags += [f"--user-data-dir={profile}", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    process = subprocess.Popen([program, *flags, "about:blank"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file, end = profile / "DevToolsActivePort", time.monotonic() + 60
        while not (port_file.is_file() and port_file.read_text().strip()):
            assert time.monotonic() < end, "Chromium did not start"
            assert process.poll() is None, "Chromium ended"
            time.sleep(0.1)
        port = int(port_file.read_text().splitlines()[0])
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as listed:
            target = next(one for one in json.load(listed) if one["type"] == "page")
        with connect(target["webSocketDebuggerUrl"], max_size=2**28) as socket:
            yield Browser(socket)
    finally:
        process.terminate()
        process.wait(30)
