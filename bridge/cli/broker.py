"""Whether the broker that a configuration names can be used, asked the way the daemon asks."""

from __future__ import annotations

import asyncio
import contextlib
import socket

from bridge.bus.connection import BusSettings, Connection
from bridge.bus.protocol import BusState
from bridge.bus.server_binary import find_server
from bridge.config import Config, ListenAddress
from bridge.errors import BridgeError, UnavailableError

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
    settings = BusSettings(
        node=f"{config.node.name}-check",
        urls=config.broker.urls,
        connect_timeout_seconds=min(2.0, seconds_max),
    )
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
