"""Servers, addresses and logs that the bus refuses, or that refuse it, and what is told of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bridge.access import Access, Secret
from bridge.bus.connection import BusSettings
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.nats_bus import open_bus
from bridge.bus.protocol import (
    BrokerRefusedError,
    BrokerSettingsError,
    BrokerTooOldError,
    LogUnavailableError,
)
from bridge.bus.streams import LogConfigError, LogSettings
from bridge.errors import Exit
from bridge.model import Position
from bridge.rig.broker import ServerThread
from bridge.wire.subjects import cluster_filter, stream_name
from tests.bus_kit import CLUSTER, DEADLINE_SECONDS, read_items

STREAM = stream_name(CLUSTER)


def user(name: str, password: str) -> Access:
    return Access(user=name, password=Secret(password))


async def test_an_old_server_is_refused(tmp_path: Path) -> None:
    greeting = b'INFO {"server_id":"x","version":"2.9.10","max_payload":1048576,"headers":true}\r\n'

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        while line := await reader.readline():
            if line == b"PING\r\n":
                writer.write(b"PONG\r\n")
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    async with listener:
        with pytest.raises(BrokerTooOldError) as caught:
            await open_bus(BusSettings("n1", (f"nats://127.0.0.1:{port}",)))
    assert "got 2.9.10" in str(caught.value)
    assert caught.value.exit_code == Exit.UNAVAILABLE
    assert "install" in caught.value.hint


async def test_a_wrong_password_is_refused_without_showing_it(tmp_path: Path) -> None:
    config = 'authorization { user: "bridge", password: "right" }'
    async with EmbeddedServer(tmp_path / "nats", extra_config=config) as server:
        url = server.url.replace("nats://", "nats://bridge:secretwrong@")
        with pytest.raises(BrokerRefusedError) as caught:
            await open_bus(BusSettings("n1", (url,)))
        assert "secretwrong" not in str(caught.value)
        assert "uthorization" in str(caught.value)
        bus = await open_bus(BusSettings("n1", (server.url,), access=user("bridge", "right")))
        assert bus.state.connected
        await bus.close()


@pytest.mark.parametrize("url", ["nats://host:port", "nats://[::1", "127.0.0.1:4222", "http://x"])
async def test_an_address_that_is_none_is_refused(url: str) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        with pytest.raises(BrokerSettingsError, match="is no address"):
            await open_bus(BusSettings("n1", (url,)))


async def test_a_credentials_file_that_is_missing_is_told(tmp_path: Path) -> None:
    settings = BusSettings("n1", access=Access(credentials=tmp_path / "bridge.creds"))
    with pytest.raises(BrokerSettingsError, match="cannot read"):
        await open_bus(settings)


async def test_a_server_without_jetstream_is_refused(tmp_path: Path) -> None:
    config = """
    accounts {
      plain { users: [ { user: "plain", password: "p" } ] }
      system { users: [ { user: "system", password: "p" } ] }
    }
    system_account: system
    """
    async with EmbeddedServer(tmp_path / "nats", extra_config=config) as server:
        with pytest.raises(LogUnavailableError) as caught:
            await open_bus(BusSettings("n1", (server.url,), access=user("plain", "p")))
    assert "JetStream" in str(caught.value)
    assert caught.value.hint


async def test_a_missing_log_is_an_error_in_the_end(server: ServerThread) -> None:
    bus = await open_bus(BusSettings("n1", (server.url,)))
    subscription = bus.subscribe("nowhere", [], Position(0))
    with pytest.raises(LogUnavailableError, match="does not exist"):
        await read_items(subscription, 1)
    await bus.close()


async def test_an_unfit_log_is_refused_and_other_limits_are_told(server: ServerThread) -> None:
    bus = await open_bus(BusSettings("n1", (server.url,)))
    link = await bus.link()
    config = {
        "name": STREAM,
        "subjects": [cluster_filter(CLUSTER)],
        "storage": "memory",
        "retention": "workqueue",
        "max_msgs_per_subject": 1,
    }
    assert not (await link.call(f"$JS.API.STREAM.CREATE.{STREAM}", config)).error
    with pytest.raises(LogConfigError) as caught:
        await bus.ensure_log(CLUSTER, LogSettings())
    assert "workqueue" in str(caught.value)
    assert "per subject" in str(caught.value)
    assert not (await link.call(f"$JS.API.STREAM.DELETE.{STREAM}", {})).error
    made = await bus.ensure_log(CLUSTER, LogSettings(max_age_seconds=3600))
    assert made.created
    assert not made.differences
    found = await bus.ensure_log(CLUSTER, LogSettings(max_age_seconds=7200, storage="memory"))
    assert not found.created
    assert sorted(text.split()[0] for text in found.differences) == ["max_age", "storage"]
    with pytest.raises(LogUnavailableError, match="replicas"):
        await bus.ensure_log("three", LogSettings(replicas=3))
    await bus.close()
