"""A nats-server as somebody else would run it: its own options, and nothing of the bridge's."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bridge.bus.server_binary import find_server

HOST = "127.0.0.1"
START_SECONDS_MAX = 30.0
POLL_SECONDS = 0.02


@contextmanager
def bare_server(directory: Path, *options: str) -> Iterator[str]:
    """A server on a free port; its URL once it takes clients, whether it greets them or not."""
    ports = directory / "ports"
    ports.mkdir()
    command = [str(find_server().path), "-a", HOST, "-p", "-1", "--ports_file_dir", str(ports)]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_SECONDS_MAX
        while not (files := list(ports.glob("*.ports"))) or not files[0].read_text():
            assert time.monotonic() < deadline, "nats-server did not start"
            assert process.poll() is None, "nats-server ended"
            time.sleep(POLL_SECONDS)
        port = json.loads(files[0].read_text())["nats"][0].rpartition(":")[2]
        yield f"nats://{HOST}:{port}"
    finally:
        process.kill()
        process.wait()
