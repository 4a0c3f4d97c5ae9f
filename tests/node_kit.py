"""Whole nodes for tests: processes with maps of their own and a server, and what maps hold."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from bridge.kernel.maps import KernelMap, MapType, create_map
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.nodes import MapEntry, NodeProcess
from tests.integration.kernel_support import rows_of, unique_name

DEADLINE_SECONDS = 60.0
KEY, VALUE = 16, 24


class Rig:
    """Maps with pins, nodes, and a server; all removed at the end."""

    def __init__(
        self, directory: Path, pins: Path, server: ServerThread, capture: str = "sweep"
    ) -> None:
        self.directory, self.pins, self.server = directory, pins, server
        self.capture = capture
        self.maps: list[KernelMap] = []
        self.nodes: list[NodeProcess] = []

    def map(self, name: str, *, value_size: int = VALUE, entries: int = 16_384) -> KernelMap:
        made = create_map(MapType.HASH, KEY, value_size, entries, name=unique_name("node"))
        made.pin(self.pins / name)
        self.maps.append(made)
        return made

    def entry(self, name: str, pin: str, role: Role, more: str = "") -> MapEntry:
        return MapEntry(name, self.pins / pin, role, more=(more,) if more else ())

    def node(
        self,
        name: str,
        *maps: MapEntry,
        url: str = "",
        ready: bool = True,
        more: str = "",
        before: Sequence[str] = (),
        options: Sequence[str] = (),
        replicas: int = 1,
    ) -> NodeProcess:
        node = NodeProcess(
            name,
            self.directory,
            broker_url=url or self.server.url,
            replicas=replicas,
            maps=maps,
            capture=self.capture,
            more=more,
            before=before,
            options=options,
        )
        self.nodes.append(node)
        if ready:
            node.await_running()
        return node

    def close(self) -> None:
        for node in self.nodes:
            node.stop()
        for made in self.maps:
            made.close()


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not in time: {what}"
        time.sleep(0.02)


def content(kernel_map: KernelMap) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for keys, values in kernel_map.scan():
        found |= {k.tobytes(): v.tobytes() for k, v in zip(keys, values, strict=True)}
    return found


def fill(kernel_map: KernelMap, numbers: range, value: int) -> None:
    keys = rows_of(numbers, KEY)
    values = np.full((len(keys), kernel_map.info.value_size), value, np.uint8)
    outcome = kernel_map.update_batch(keys, values)
    assert (outcome.done, outcome.errno) == (len(keys), 0)


def map_name() -> str:
    return unique_name("m")


def published(node: NodeProcess) -> int:
    """Changes that the node has published of its first map."""
    status = node.map_status()["published"]
    assert isinstance(status, dict)
    return int(status["changes"])


def mapbridge(*arguments: str, before: list[str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*(before or []), sys.executable, "-m", "bridge.cli.main", *arguments],
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
