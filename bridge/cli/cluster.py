"""What the nodes of a cluster tell each other through the broker, for ``mapbridge status``."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict

import click

from bridge.bus.board import Standing, SyncBoard
from bridge.bus.nats_bus import open_bus
from bridge.cli import output
from bridge.config.settings import Config
from bridge.errors import BridgeError, Exit, UnavailableError
from bridge.node.access import bus_settings

POLL_SECONDS = 0.25
CONNECT_SECONDS_MAX = 10.0


class NodeNotSyncedError(BridgeError):
    """Another node does not say that its map is synced."""

    exit_code = Exit.TEMPORARY


def show(
    config: Config, node: str | None, awaited: str | None, timeout_seconds: float, *, as_json: bool
) -> None:
    """Print what all nodes say, or wait until ``node`` says that the map ``awaited`` is synced."""
    if node is not None and awaited is None:
        raise click.UsageError("--node: needs --wait-synced")
    found = asyncio.run(_ask(config, node, awaited, timeout_seconds))
    if as_json:
        output.print_json({"nodes": [asdict(standing) for standing in found]})
        return
    output.print_table(
        ["map", "node", "state", "synced", "behind s", "position"],
        [_row(standing) for standing in found],
    )


async def _ask(
    config: Config, node: str | None, awaited: str | None, timeout_seconds: float
) -> list[Standing]:
    urls = config.broker.urls or (f"nats://{config.broker.listen}",)
    try:
        async with asyncio.timeout(CONNECT_SECONDS_MAX):
            bus = await open_bus(bus_settings(config, "status", urls))
    except TimeoutError as error:
        raise UnavailableError(
            f"broker: not reached within {CONNECT_SECONDS_MAX:g} s",
            hint="see `mapbridge check`",
        ) from error
    try:
        return await _await(SyncBoard(bus, config.node.cluster), node, awaited, timeout_seconds)
    finally:
        await bus.close()


async def _await(
    board: SyncBoard, node: str | None, awaited: str | None, timeout_seconds: float
) -> list[Standing]:
    deadline = time.monotonic() + timeout_seconds
    while True:
        found = await board.all()
        if node is None and awaited is None:
            return found
        asked = [s for s in found if node in (None, s.node) and awaited in ("all", s.map)]
        if asked and all(standing.synced for standing in asked):
            return asked
        if time.monotonic() >= deadline:
            who = f"node {node}" if node is not None else "some node"
            raise NodeNotSyncedError(
                f"map {awaited}: not synced on {who}"
                + ("" if asked else " (it has said nothing for a while)"),
                hint="give it more time with --timeout, and see `mapbridge status --nodes`",
            )
        await asyncio.sleep(POLL_SECONDS)


def _row(standing: Standing) -> list[object]:
    behind = standing.behind_seconds
    return [
        standing.map,
        standing.node,
        standing.state,
        "yes" if standing.synced else "no",
        f"{behind:.1f}" if behind is not None else "-",
        standing.position,
    ]
