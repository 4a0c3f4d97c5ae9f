"""The log as its keeper has it, a way to it that can be cut, and what nodes say of reading it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import orjson

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.rig.nodes import CLUSTER, NodeProcess
from bridge.wire.subjects import stream_name
from tests.node_kit import mapbridge, until

T = TypeVar("T")


def keeper(url: str, work: Callable[[NatsBus], Awaitable[T]]) -> T:
    """Do something with the log as the one who keeps it."""

    async def run() -> T:
        bus = await open_bus(BusSettings("keeper", (url,)))
        try:
            return await work(bus)
        finally:
            await bus.close()

    return asyncio.run(run())


def forget(url: str, before: int) -> None:
    """Retention: the log loses everything up to ``before``."""

    async def purge(bus: NatsBus) -> None:
        link = await bus.link()
        reply = await link.call(f"$JS.API.STREAM.PURGE.{stream_name(CLUSTER)}", {"seq": before + 1})
        assert not reply.error, reply.error

    keeper(url, purge)


def snapshot(node: NodeProcess, name: str) -> dict[str, object]:
    """Have the node take one; what it says of it."""
    ended = mapbridge("snapshot", name, "-c", str(node.config_path), "--json")
    assert ended.returncode == 0, ended.stderr
    answer = orjson.loads(ended.stdout)
    assert isinstance(answer, dict)
    return answer


def position(answer: dict[str, object]) -> int:
    found = answer["position"]
    assert isinstance(found, int)
    return found


def joined(node: NodeProcess) -> str:
    """The way in which the node's first map joined; empty: not yet."""
    found = node.map_status().get("joined")
    return str(found["way"]) if isinstance(found, dict) else ""


def stream(node: NodeProcess, counter: str) -> int:
    """A counter of what the node has read for its first map."""
    found = node.map_status().get("stream")
    return int(found[counter]) if isinstance(found, dict) else 0


def await_new_life(node: NodeProcess) -> None:
    """The map was told to join anew, has done so, and a status was written since."""
    until(lambda: "joins anew" in node.log_path.read_text(), "the word")
    later = time.time() + 1.5
    until(lambda: node.status_written > later and synced(node), "the new life")


def synced(node: NodeProcess) -> bool:
    return bool(node.map_status().get("synced"))


class Line:
    """A TCP connection's way to the server that can be cut and mended."""

    def __init__(self, url: str) -> None:
        self._to = int(url.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"nats://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut.set()
        for end in self._open:
            _shut(end)
        self._open.clear()

    def mend(self) -> None:
        self._cut.clear()

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._cut.is_set():
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._to))
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def _shut(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
    _shut(other)


def connected(node: NodeProcess) -> bool:
    broker = node.status().get("broker")
    return bool(broker["connected"]) if isinstance(broker, dict) else True
