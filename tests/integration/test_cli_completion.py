"""Completion in real shells at a real terminal: what a person types, Tab, and what then stands."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.rig.broker import ServerThread
from tests.node_kit import mapbridge

DEADLINE_SECONDS = 30.0
_CONTROL = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]|\x1b[()][A-Z0-9]|\x1b\][^\x07]*\x07|[\r\x07]")
SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], "PS1='> '; source {script}"),
    "zsh": (["-f", "-i"], "PS1='> '; autoload -U compinit; compinit -u -D; source {script}"),
    "fish": (["--no-config", "-i"], "source {script}"),
}


class Terminal:
    """A shell with a terminal of its own."""

    def __init__(self, shell: str, home: Path) -> None:
        arguments, _ = SHELLS[shell]
        environment = {
            "HOME": str(home),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "TERM": "dumb" if shell == "zsh" else "xterm",
            "LANG": "C.UTF-8",
        }
        self._end, other = pty.openpty()
        self._process = subprocess.Popen(
            # fish ends where its terminal does not control its session
            ["setsid", "--ctty", shell, *arguments],
            stdin=other,
            stdout=other,
            stderr=other,
            env=environment,
        )
        os.close(other)
        self._seen = b""

    def send(self, text: str) -> None:
        self._seen = b""
        os.write(self._end, text.encode())

    def await_text(self, wanted: str) -> None:
        deadline = time.monotonic() + DEADLINE_SECONDS
        while wanted.encode() not in _CONTROL.sub(b"", self._seen):
            assert time.monotonic() < deadline, f"{wanted!r} not seen in {self._seen!r}"
            if select.select([self._end], [], [], 0.2)[0]:
                self._seen += os.read(self._end, 4096)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._end)


@pytest.fixture(params=list(SHELLS))
def terminal(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Terminal]:
    shell = str(request.param)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    script = tmp_path / f"completion.{shell}"
    done = mapbridge("completion", shell)
    assert done.returncode == 0, done.stderr
    script.write_text(done.stdout)
    made = Terminal(shell, tmp_path)
    try:
        made.send(SHELLS[shell][1].format(script=script) + "; echo rea''dy\n")
        made.await_text("ready\n")
        yield made
    finally:
        made.close()


def configuration(directory: Path, url: str) -> Path:
    path = directory / "a.toml"
    path.write_text(
        f'[node]\nname = "lb-eleven"\nstate_dir = "{directory}/state"\n'
        f'[broker]\nurl = "{url}"\n'
        '[[maps]]\nname = "conntrack"\npin = "/sys/fs/bpf/nothing"\n'
        '[[maps]]\nname = "routes"\npin = "/sys/fs/bpf/nothing-else"\n'
    )
    return path


def test_commands_maps_and_nodes(terminal: Terminal, tmp_path: Path) -> None:
    """Nodes with no broker there: this one is known all the same."""
    path = configuration(tmp_path, "nats://127.0.0.1:1")
    terminal.send("mapbridge comple\t")
    terminal.await_text("mapbridge completion ")
    terminal.send("\x15mapbridge resume -c " + str(path) + " conn\t")
    terminal.await_text("conntrack ")
    terminal.send("--node lb-\t")
    terminal.await_text("lb-eleven ")


def test_nodes_that_the_broker_knows(tmp_path: Path) -> None:
    """Asked for by the protocol between shell and command, which all shells use."""
    with ServerThread(tmp_path / "nats") as server:
        path = configuration(tmp_path, server.url)
        told = tmp_path / "say.py"
        told.write_text(_SAY)
        subprocess.run([sys.executable, str(told), server.url], check=True, timeout=60)
        environment = {
            **os.environ,
            "_MAPBRIDGE_COMPLETE": "bash_complete",
            "COMP_WORDS": f"mapbridge verify -c {path} ct --repair --source lb-",
            "COMP_CWORD": "7",
        }
        done = subprocess.run(
            [Path(sys.executable).parent / "mapbridge"],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.stdout.splitlines() == ["plain,lb-eleven", "plain,lb-seven"], done.stderr


_SAY = """
import asyncio, sys
from bridge.bus.board import Standing, SyncBoard
from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import open_bus

async def say():
    bus = await open_bus(BusSettings("say", (sys.argv[1],)))
    await SyncBoard(bus, "default").say(
        Standing(node="lb-seven", map="ct", synced=True, state="running", behind_seconds=0.0,
                 position=1, written=1.0))
    await bus.close()

asyncio.run(say())
"""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["completion", "csh"], "'csh' is not one of"),
        (["completion"], "Missing argument"),
        (["man", "nothing"], "mapbridge has no command 'nothing'"),
        (["man", "run", "more"], "mapbridge run has no command 'more'"),
        (["man", "run", "--output", "/tmp"], "writes all pages"),
    ],
)
def test_what_was_typed_wrongly(arguments: list[str], reason: str) -> None:
    done = mapbridge(*arguments)
    assert done.returncode == 2
    assert reason in done.stderr


def test_a_directory_that_cannot_be_written() -> None:
    done = mapbridge("man", "--output", "/proc/nothing")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: --output /proc/nothing: ")
