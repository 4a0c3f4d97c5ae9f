"""Pictures for the documentation, taken while `mapbridge demo` runs: `python -m tests.pictures`.

The page of node b in a real browser, on a desktop and on a phone, and `mapbridge top` in a
terminal. Needs root and a browser. Writes PNG files to docs/reference/images.
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import io
import os
import pty
import signal
import struct
import subprocess
import sys
import tempfile
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pyte
from rich.console import Console
from rich.text import Text

from tests.integration.browser_kit import Page, browser

LISTEN = "127.0.0.1:9475"
SECONDS_BEFORE = 5.0  # until rates have some past
START_SECONDS_MAX = 120.0
COLUMNS, ROWS = 100, 9
COLOURS = {"brown": "yellow", "default": "white"}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.pictures")
    parser.add_argument("--out", type=Path, default=Path("docs/reference/images"))
    parser.add_argument("--sessions", type=int, default=200_000)
    options = parser.parse_args()
    with browser() as page, _demo(options.sessions) as config:
        page.show(1280, 420)
        page.open(f"http://{LISTEN}/")
        page.until("document.getElementById('live').textContent == 'live'")
        time.sleep(SECONDS_BEFORE)
        page.picture(options.out / "dashboard.png")
        page.show(390, 844, scale=2, dark=True)
        page.until("document.documentElement.scrollWidth == 390")
        page.picture(options.out / "dashboard-phone.png")
        _picture_of_top(page, config, options.out / "top.png")


@contextlib.contextmanager
def _demo(sessions: int) -> Iterator[Path]:
    """The configuration of node b while sessions are being opened."""
    command = [sys.executable, "-m", "bridge.cli.main", "demo", "--listen", LISTEN]
    process = subprocess.Popen([*command, "--sessions", str(sessions)], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        deadline = time.monotonic() + START_SECONDS_MAX
        while b" open | entries" not in process.stdout.readline():
            assert time.monotonic() < deadline, "no session was opened"
        yield _config_of(process.pid)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def _config_of(parent: int) -> Path:
    """Of the bridge of node b, which the demonstration has started."""
    found = subprocess.run(
        ["pgrep", "-P", str(parent), "-a"], capture_output=True, text=True, check=True
    )
    words = [word for line in found.stdout.splitlines() for word in line.split()]
    return next(Path(word) for word in words if word.endswith("/b/mapbridge.toml"))


def _picture_of_top(page: Page, config: Path, path: Path) -> None:
    screen = pyte.Screen(COLUMNS, ROWS)
    stream = pyte.ByteStream(screen)
    process, terminal = pty.fork()
    if not process:
        os.environ["TERM"] = "xterm-256color"
        arguments = ["-m", "bridge.cli.main", "top", "-c", str(config)]
        os.execv(sys.executable, [sys.executable, *arguments])
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", ROWS, COLUMNS, 0, 0))
    deadline = time.monotonic() + SECONDS_BEFORE
    while time.monotonic() < deadline:
        try:
            stream.feed(os.read(terminal, 1 << 16))
        except OSError as error:
            raise RuntimeError(f"it ended: {screen.display}") from error
    os.write(terminal, b"q")
    os.waitpid(process, 0)
    os.close(terminal)
    with tempfile.TemporaryDirectory() as directory:
        drawn = Path(directory) / "top.svg"
        drawn.write_text(_drawn(screen))
        page.show(1000, 260)
        page.open(drawn.as_uri())
        page.until("document.documentElement.tagName == 'svg'")
        time.sleep(1.0)  # drawn
        page.picture(path)


def _drawn(screen: pyte.Screen) -> str:
    """What the terminal shows, as SVG."""
    console = Console(width=COLUMNS, record=True, file=io.StringIO())
    for number in range(ROWS):
        line = Text()
        for column in range(COLUMNS):
            cell = screen.buffer[number][column]
            style = COLOURS.get(cell.fg, cell.fg if cell.fg.isalpha() else f"#{cell.fg}")
            line.append(cell.data, style=f"{'bold ' if cell.bold else ''}{style}")
        console.print(line, no_wrap=True)
    return console.export_svg(title="mapbridge top")


if __name__ == "__main__":
    main()
