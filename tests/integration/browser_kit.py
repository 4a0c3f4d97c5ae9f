"""A real browser for tests: headless Chromium over its debugging pipe, without a driver between.

Messages of the DevTools protocol are JSON, each ended by a zero byte, on descriptors 3 (to the
browser) and 4 (from it).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
    *("--disable-dev-shm-usage", "--remote-debugging-pipe"),
)
ANSWER_SECONDS_MAX = 30.0


def find_browser() -> str:
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no browser is here: apt install chromium-headless-shell")
    return found


class Page:
    """One page. ``said``: lines of its console and exceptions, refusals of the policy too."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process, self._to, self._back = process, to, back
        self._buffer, self._number, self._session = b"", 0, ""
        self.said: list[str] = []
        self.requested: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = str(attached["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: object) -> dict[str, object]:
        self._number += 1
        message: dict[str, object] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            found = self._next()
            if found.get("id") == self._number:
                assert "error" not in found, found
                result = found["result"]
                assert isinstance(result, dict)
                return result

    def _next(self) -> dict[str, object]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self._back], [], [], ANSWER_SECONDS_MAX)
            assert ready, "the browser does not answer"
            part = os.read(self._back, 1 << 16)
            assert part, "the browser has ended"
            self._buffer += part
        text, _, self._buffer = self._buffer.partition(b"\0")
        found = json.loads(text)
        assert isinstance(found, dict)
        params = found.get("params", {})
        match found.get("method"):
            case "Runtime.exceptionThrown" | "Log.entryAdded" | "Runtime.consoleAPICalled":
                self.said.append(json.dumps(params)[:500])
            case "Network.requestWillBeSent":
                self.requested.append(params["request"]["url"])
        return found

    def show(self, width: int, height: int, *, scale: float = 1, dark: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def value(self, script: str) -> object:
        answer = self.call("Runtime.evaluate", expression=script, returnByValue=True)
        result = answer["result"]
        assert isinstance(result, dict)
        return result.get("value")

    def until(self, script: str, seconds: float = 20.0) -> object:
        """Wait until a script gives something true."""
        deadline = time.monotonic() + seconds
        while not (found := self.value(script)):
            assert time.monotonic() < deadline, (script, self.value("document.body.innerText"))
            time.sleep(0.05)
        return found

    def picture(self, path: Path) -> None:
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(str(data)))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
    found = find_browser()
    to_read, to_write = os.pipe()
    back_read, back_write = os.pipe()
    with tempfile.TemporaryDirectory(
        prefix="mapbridge-browser-",
        ignore_cleanup_errors=True,  # its helpers may still write
    ) as profile:
        command = [found, *OPTIONS, f"--user-data-dir={profile}", "about:blank"]
        inner = f"exec 3<&{to_read} 4>&{back_write}; exec " + '"$@"'
        process = subprocess.Popen(
            ["bash", "-c", inner, "bash", *command],
            pass_fds=(to_read, back_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(back_write)
        try:
            yield Page(process, to_write, back_read)
        finally:
            process.kill()
            process.wait()
            os.close(to_write)
            os.close(back_read)
