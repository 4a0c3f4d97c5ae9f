"""What the nodes of a cluster say of themselves, for ``mapbridge status``.

Each node that runs is asked. Of one that does not answer there is what it last put on the board of
synced maps, until that vanishes. Waiting for another node looks at the board alone.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict

import click

from bridge.bus.board import Standing, SyncBoard
from bridge.bus.control import Answer
from bridge.bus.micro import ask_nodes
from bridge.bus.nats_bus import open_bus
from bridge.cli import output
from bridge.config.settings import Config
from bridge.errors import BridgeError, Exit, UnavailableError
from bridge.health.latest import section
from bridge.node.access import bus_settings

POLL_SECONDS = 0.25
CONNECT_SECONDS_MAX = 10.0
GATHER_SECONDS = 0.7  # for the answers of all nodes
_COLUMNS = (
    *("map", "node", "role", "state", "synced", "behind s", "position"),
    *("published", "applied", "lost", "repaired", "drift", "capture"),
)


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
        output.print_json({"nodes": found})
        return
    for one in found:
        if one.get("trouble"):
            output.line(f"map {one['map']} on {one['node']}: {one['trouble']}")
    output.print_table(_COLUMNS, [_row(one) for one in found])


async def _ask(
    config: Config, node: str | None, awaited: str | None, timeout_seconds: float
) -> list[dict[str, object]]:
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
        board = SyncBoard(bus, config.node.cluster)
        if awaited is not None:
            standings = await _await(board, node, awaited, timeout_seconds)
            return [asdict(standing) for standing in standings]
        answers = await ask_nodes(await bus.link(), config.node.cluster, GATHER_SECONDS)
        return joined(answers, await board.all())
    finally:
        await bus.close()


async def _await(
    board: SyncBoard, node: str | None, awaited: str, timeout_seconds: float
) -> list[Standing]:
    deadline = time.monotonic() + timeout_seconds
    while True:
        found = await board.all()
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


def joined(answers: list[Answer], board: list[Standing]) -> list[dict[str, object]]:
    """A row per map and node, by map. ``answers`` false: only the board knows of it."""
    found: list[dict[str, object]] = []
    for answer in answers:
        of_node = {key: answer.get(key) for key in ("node", "capture", "connected", "written")}
        for name, one in section(answer, "maps").items():
            found.append({"map": name, **of_node, "answers": True, **section(one)})
    heard = {answer.get("node") for answer in answers}
    for standing in board:
        if standing.node in heard:
            continue
        one = asdict(standing) | {"answers": False, "synced": False}
        if standing.state != "stopped":  # it has not said good-bye
            one["trouble"] = "the node is on the board of synced maps, but does not answer"
        found.append(one)
    return sorted(found, key=lambda one: (str(one["map"]), str(one["node"])))


def _row(one: dict[str, object]) -> list[object]:
    behind = one.get("behind_seconds")
    silent = not one.get("answers", True) and one.get("state") != "stopped"
    cells = {
        "state": "silent" if silent else one.get("state"),
        "synced": "yes" if one["synced"] else "no",
        "behind s": f"{behind:.1f}" if isinstance(behind, float) else None,
        "drift": section(one, "verified").get("drift"),
    }
    return ["-" if (c := cells.get(name, one.get(name))) is None else c for name in _COLUMNS]
