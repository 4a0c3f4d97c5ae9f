"""The embedded server: found, started, restarted, given up, and gone with its parent."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from pathlib import Path

import nats
import pytest
from nats.errors import Error as NatsError

from bridge.bus import server_binary
from bridge.bus.connection import BusSettings
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.nats_bus import open_bus
from bridge.bus.server_binary import ServerBinary, find_server
from bridge.bus.streams import LogSettings
from bridge.errors import Exit, UnavailableError
from bridge.kernel.features import Capability
from bridge.model import Position
from bridge.rig import tools
from tests.bus_kit import (
    CLUSTER,
    DEADLINE_SECONDS,
    assert_contiguous,
    eventually,
    numbered_delta,
    origin,
    read_deltas,
)
from tests.integration.kernel_support import needs

PARENT = """
import asyncio, sys
from pathlib import Path
from bridge.bus.embedded import EmbeddedServer
async def main():
    async with EmbeddedServer(Path(sys.argv[1])) as server:
        print(server.pid, flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(") ")[2][0]
    except FileNotFoundError:
        return False
    return state not in "ZX"


async def test_what_was_stored_is_there_after_a_restart(tmp_path: Path) -> None:
    url = ""
    for first in (1, 4, 7):
        async with EmbeddedServer(tmp_path / "a directory") as server:
            bus = await open_bus(BusSettings("n1", (server.url,)))
            made = await bus.ensure_log(CLUSTER, LogSettings())
            assert made.created == (first == 1)
            publisher = await bus.publisher(origin())
            await publisher.publish(numbered_delta(first, 3))
            received = await read_deltas(bus.subscribe(CLUSTER, [], Position(0)), first // 3 + 1)
            assert assert_contiguous(received) == first + 3
            await bus.close()
            pid, url = server.pid, server.url
            assert pid is not None
        assert server.pid is None
        assert not _runs(pid)
    assert url.startswith("nats://127.0.0.1:")


async def test_two_servers_do_not_meet(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path / "1") as one, EmbeddedServer(tmp_path / "2") as other:
        assert one.url != other.url


async def test_a_child_that_dies_is_started_again_on_its_port(tmp_path: Path) -> None:
    reports: list[str] = []
    async with EmbeddedServer(tmp_path, report=reports.append) as server:
        url, pid = server.url, server.pid
        server.kill()
        await eventually(lambda: server.restarts == 1 and server.pid not in (None, pid))
        bus = await open_bus(BusSettings("n1", (url,)))
        await bus.close()
        assert server.url == url
        assert "starting it again" in reports[0]


async def test_a_child_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    reports: list[str] = []
    server = EmbeddedServer(tmp_path, report=reports.append)
    await server.start()
    (tmp_path / "nats-server.conf").unlink()
    server._extra_config = "no such option: 1"  # what the next start will read
    server.kill()
    async with asyncio.timeout(DEADLINE_SECONDS):
        await server.failed.wait()
    assert "given up" in reports[-1]
    assert server.pid is None
    await server.stop()


async def test_a_configuration_that_it_refuses_is_told(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, extra_config="no such option: 1")
    with pytest.raises(UnavailableError, match="ended with 1"):
        await server.start()
    await server.stop()


@pytest.mark.parametrize("stop", [signal.SIGKILL, signal.SIGTERM])
async def test_the_child_goes_with_its_parent(tmp_path: Path, stop: signal.Signals) -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, str(tmp_path), stdout=asyncio.subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        assert _runs(pid)
        parent.send_signal(stop)
        await parent.wait()
        await eventually(lambda: not _runs(pid))
    finally:
        if parent.returncode is None:
            parent.kill()
            await parent.wait()


def _script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="ascii")
    path.chmod(0o755)
    return path


def test_an_old_server_on_the_path_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(tmp_path / "nats-server", "echo nats-server: v2.9.10")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    found = find_server()
    assert found.path.parent != tmp_path
    assert found.version >= (2, 10, 0)


def test_a_new_server_on_the_path_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _script(tmp_path / "nats-server", "echo nats-server: v2.10.0")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert find_server() == ServerBinary(path, (2, 10, 0))


def test_without_a_server_the_way_out_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _script(tmp_path / "nats-server", "echo nats-server: v2.9.10")
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    monkeypatch.setattr(server_binary, "_PACKAGE", "mapbridge-no-such-package")
    with pytest.raises(UnavailableError) as caught:
        find_server()
    assert "2.9.10" in str(caught.value)
    assert "mapbridge[embedded]" in caught.value.hint
    assert caught.value.exit_code == Exit.UNAVAILABLE


@needs(Capability.CAP_SYS_ADMIN)
async def test_a_child_stores_again_when_its_disk_was_full(tmp_path: Path) -> None:
    reports: list[str] = []
    tools.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(tmp_path)])
    try:
        async with EmbeddedServer(tmp_path, report=reports.append) as server:
            client = await nats.connect(server.url)
            log = client.jetstream(timeout=1.0)
            await log.add_stream(name="log", subjects=["log"])
            await log.publish("log", b"before")
            filler = tmp_path / "filler"
            _fill(filler)
            with pytest.raises(NatsError):
                await log.publish("log", bytes(1 << 19))
            filler.unlink()
            await eventually(lambda: server.restarts == 1 and server.pid is not None)
            assert "the disk has room" in reports[0]
            await client.close()
            again = await nats.connect(server.url)
            stored = await again.jetstream().publish("log", b"after")
            assert stored.seq == 2
            await again.close()
    finally:
        tools.run(["umount", str(tmp_path)])


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
