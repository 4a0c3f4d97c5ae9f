"""Whether the broker that a configuration names can be used, asked the way the daemon asks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator
from dataclasses import replace

import click

from bridge.bus.connection import Connection
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.protocol import BusState
from bridge.bus.server_binary import find_server
from bridge.config import Config, ListenAddress
from bridge.errors import BridgeError, UnavailableError
from bridge.node.access import bus_settings

LOOK_SECONDS_MAX = 3.0
_HINT = "start the server, or correct broker.url"


def look_at_broker(config: Config, *, seconds_max: float = LOOK_SECONDS_MAX) -> BusState | None:
    """Connect, check version and JetStream, go away again; ``None`` for an embedded server.

    An embedded server is not started; its address must be free or in use by this node's bridge.
    Raises ``BridgeError``.
    """
    if config.broker.embedded:
        _look_at_embedded(config)
        return None
    return asyncio.run(_connect(config, seconds_max))


async def _connect(config: Config, seconds_max: float) -> BusState:
    said: list[str] = []
    settings = replace(bus_settings(config, "check"), connect_timeout_seconds=min(2.0, seconds_max))
    connection = Connection(settings, said.append)
    try:
        async with asyncio.timeout(seconds_max):
            await connection.open()
            return connection.state
    except TimeoutError as error:
        reason = said[-1].removesuffix("; trying again") if said else "broker: does not answer"
        raise UnavailableError(reason, hint=_HINT) from error
    finally:
        await connection.close()


def broker_urls(config: Config) -> tuple[str, ...]:
    """The broker's addresses; of an embedded server, where the running bridge says it listens."""
    from bridge.node.instance import read_status

    if not config.broker.embedded:
        return config.broker.urls
    running = read_status(config.node.state_directory) or {}
    broker = running.get("broker")
    url = broker.get("url") if isinstance(broker, dict) else None
    return (url or f"nats://{config.broker.listen}",)


@contextlib.asynccontextmanager
async def reader_bus(
    config: Config, purpose: str, *, seconds_max: float | None = None
) -> AsyncIterator[NatsBus]:
    """A connection of a command that reads. Waits for the broker, at most ``seconds_max``.

    Raises ``UnavailableError`` when it does not answer in time.
    """
    settings = bus_settings(config, f"{purpose}-{os.getpid()}", broker_urls(config))
    said: list[str] = []

    def report(text: str) -> None:
        said.append(text)
        if seconds_max is None:
            click.echo(text, err=True)

    try:
        async with asyncio.timeout(seconds_max):
            bus = await open_bus(settings, report)
    except TimeoutError as error:
        reason = said[-1].removesuffix("; trying again") if said else "broker: does not answer"
        raise UnavailableError(reason, hint=_HINT) from error
    try:
        yield bus
    finally:
        await bus.close()


def _look_at_embedded(config: Config) -> None:
    find_server()
    listen = config.broker.listen
    if listen.port != 0 and _is_taken(listen) and not _runs(config):
        raise BridgeError(
            f"broker {listen}: the address is in use by another program",
            hint="set broker.listen to a free port, or broker.url to the server that runs there",
        )


def _is_taken(listen: ListenAddress) -> bool:
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    with contextlib.suppress(OSError), socket.socket(family) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((listen.host, listen.port)) == 0
    return False


def _runs(config: Config) -> bool:
    from bridge.node.instance import read_status

    try:
        return read_status(config.node.state_directory) is not None
    except OSError:
        return False
