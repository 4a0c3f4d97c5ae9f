"""The bus through a leaf node: a server without storage in front of a hub with a domain."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.protocol import LogUnavailableError
from bridge.bus.server_binary import find_server
from bridge.bus.streams import LogSettings
from bridge.model import Position
from tests.bus_kit import CLUSTER, numbered_delta, origin, read_deltas

DOMAIN = "hub"
READY_SECONDS_MAX = 20.0


class Server:
    """A nats-server with a configuration of its own."""

    def __init__(self, directory: Path, name: str, port: int, more: str) -> None:
        self.url = f"nats://127.0.0.1:{port}"
        self._path = directory / f"{name}.conf"
        log = json.dumps(str(directory / f"{name}.log"))
        self._path.write_text(
            f"server_name: {name}\nhost: 127.0.0.1\nport: {port}\nlog_file: {log}\n{more}\n"
        )
        self.start()

    def start(self) -> None:
        command = [str(find_server().path), "-c", str(self._path)]
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """Hub and leaf."""
    between = free_port()
    store = json.dumps(str(tmp_path / "store"))
    hub = Server(
        tmp_path,
        "hub",
        free_port(),
        f"jetstream {{ store_dir: {store}, domain: {DOMAIN} }}\n"
        f"leafnodes {{ host: 127.0.0.1, port: {between} }}",
    )
    remotes = f'[{{ url: "nats://127.0.0.1:{between}" }}]'
    leaf = Server(
        tmp_path, "leaf", free_port(), f'leafnodes {{ reconnect: "1s", remotes: {remotes} }}'
    )
    yield hub, leaf
    leaf.kill()
    hub.kill()


async def opened(server: Server, node: str) -> NatsBus:
    """A leaf node that has not reached its hub yet looks as if nobody had JetStream."""
    for _ in range(int(READY_SECONDS_MAX / 0.2)):
        try:
            return await open_bus(BusSettings(node, (server.url,), domain=DOMAIN))
        except LogUnavailableError:
            await asyncio.sleep(0.2)
    raise AssertionError("the leaf node never reached its hub")


async def test_both_sides_of_a_leaf_node_share_one_log(servers: tuple[Server, Server]) -> None:
    hub, leaf = servers
    near, far = await opened(hub, "near"), await opened(leaf, "far")
    await far.ensure_log(CLUSTER, LogSettings())
    await near.ensure_log(CLUSTER, LogSettings())
    from_far = await far.publisher(origin("far"))
    from_near = await near.publisher(origin("near"))
    readers = [bus.subscribe(CLUSTER, [], Position(0)) for bus in (near, far)]
    for first in (1, 4, 7):
        await from_far.publish(numbered_delta(first, 3, origin("far")))
        await from_near.publish(numbered_delta(first, 3, origin("near")))
    found = [await read_deltas(reader, 6) for reader in readers]
    assert [one.sequence for one in found[0]] == [one.sequence for one in found[1]]
    leaf.kill()
    await from_near.publish(numbered_delta(10, 3, origin("near")))
    leaf.start()
    await from_far.publish(numbered_delta(10, 3, origin("far")))
    for reader in readers:
        assert len(await read_deltas(reader, 2)) == 2
    await near.close()
    await far.close()
