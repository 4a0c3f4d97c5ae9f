"""``mapbridge verify``: whether a map is the same on all nodes that have it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click
import numpy as np

from bridge.cli import output
from bridge.cli.names import MAP, NODE
from bridge.cli.options import config_option
from bridge.cli.peers import Peers, Reading, peers_of
from bridge.config import Config, load
from bridge.core.digests import BUCKETS_MAX, Drift, differing, lasting, most_held
from bridge.errors import BridgeError, Exit, UnavailableError
from bridge.model import Role

ROUNDS = 5
PAUSE_SECONDS = 0.5
READINGS = 3
KEYS_SHOWN = 20
REPAIRED_PER_CALL = 1_000


class DriftError(BridgeError):
    """Replicas differ, and go on to."""

    exit_code = Exit.FAILURE


@dataclass(slots=True)
class Found:
    """``entries`` by node, in the last round. ``moving``: buckets that differ by going on."""

    map: str
    nodes: dict[str, int]
    left_out: dict[str, str]
    rounds: int = 0
    buckets: int = BUCKETS_MAX
    moving: int = 0
    truncated: bool = False
    evicts: bool = False  # the map drops entries by itself: keys that one node lacks do not count
    drift: list[Drift] = field(default_factory=list)
    repaired: int = 0


@click.command("verify")
@click.argument("name", metavar="MAP", type=MAP)
@config_option
@click.option("--repair", is_flag=True, help="Publish what most nodes hold of keys that differ.")
@click.option(
    "--source", metavar="NODE", type=NODE, help="With --repair: the node whose entries are right."
)
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=ROUNDS,
    show_default=True,
    help="How often buckets that differ are looked at again.",
)
@output.json_option
def command(
    name: str, config_path: Path, repair: bool, source: str | None, rounds: int, as_json: bool
) -> None:
    """Compare a map on all nodes by digests of its entries, while it is in use.

    Each node answers when it has applied what the stream held at the question. What differs is
    asked again: only a key that stays different, in the same way, on nodes that are up to date, is
    drift.
    Exit code 0: equal; 1: drift, or a node is too far behind to tell; 69: nodes do not answer.

    \b
    Examples:
      mapbridge verify ct
      mapbridge verify ct --repair
      mapbridge verify ct --repair --source node-a --json
    """
    config = load(config_path)
    found = asyncio.run(_verify(config, name, rounds, repair=repair, source=source))
    _print(found, as_json=as_json)
    if found.drift and not found.repaired:
        raise DriftError(
            f"map {name}: {len(found.drift)} keys differ between nodes",
            hint="see which with `mapbridge diff`; `mapbridge verify --repair` makes them equal",
        )


async def _verify(
    config: Config, name: str, rounds: int, *, repair: bool, source: str | None
) -> Found:
    async with peers_of(config) as peers:
        roles = await peers.having(name)
        compared, left_out = comparable(roles)
        if len(compared) < 2:
            raise UnavailableError(
                f"map {name}: nothing to compare (running on {', '.join(roles) or 'no node'})",
                hint="start the bridges of the other nodes, and wait until they have joined",
            )
        found = Found(name, dict.fromkeys(compared, 0), left_out)
        suspects, last = await _rounds(peers, found, rounds)
        if len(suspects):
            await _look_closely(peers, found, suspects, last)
        await _tell(peers, found)
        if found.drift and repair:
            await _repair(peers, found, roles, source)
        return found


def comparable(roles: dict[str, str]) -> tuple[list[str], dict[str, str]]:
    """Nodes whose maps must be equal, and why the others are left out.

    A node that only publishes takes nothing of the others: it counts while it is the only source.
    """
    sources = [node for node, role in roles.items() if Role(role).publishes]
    left_out = {
        node: "publishes only, beside others"
        for node, role in roles.items()
        if role == Role.PUBLISH and len(sources) > 1
    }
    return [node for node in roles if node not in left_out], left_out


async def _tell(peers: Peers, found: Found) -> None:
    """Let the nodes know what was found, for their status and whoever looks at it."""
    verdict: dict[str, object] = {
        "map": found.map,
        "drift": len(found.drift),
        "nodes": len(found.nodes),
    }
    for node in found.nodes:
        with contextlib.suppress(BridgeError):  # an older bridge, which does not take it
            await peers.tell(node, "verified", verdict)


async def _rounds(peers: Peers, found: Found, rounds: int) -> tuple[list[int], Sequence[Reading]]:
    """Buckets that differed in every round, of the last one's digests.

    All rounds but the first take the seed of none before: what differs by chance does so once.
    """
    nodes = list(found.nodes)
    readings: list[Reading] = []
    for number in range(rounds):
        if number:
            await asyncio.sleep(PAUSE_SECONDS)
        readings = await peers.digests(found.map, nodes, found.buckets)
        found.rounds = number + 1
        found.nodes = {reading.node: reading.entries for reading in readings}
        found.evicts = any(reading.evicts for reading in readings)
        behind = [reading.node for reading in readings if not reading.reached]
        differs = differing([reading.digest for reading in readings])
        if not differs.any() and not behind:
            return [], readings
        if behind and number + 1 == rounds:
            raise DriftError(
                f"map {found.map}: cannot tell, {', '.join(behind)} did not catch up",
                hint="see `mapbridge status` there; try again when the load is lower",
            )
    return np.flatnonzero(differing([r.digest for r in readings])).tolist(), readings


async def _look_closely(
    peers: Peers, found: Found, suspects: list[int], last: Sequence[Reading]
) -> None:
    """Read the entries of buckets that differ, several times: what stays different is drift."""
    nodes, digest = list(found.nodes), last[0].digest
    readings = []
    for number in range(READINGS):
        if number:
            await asyncio.sleep(PAUSE_SECONDS)
        pages = await peers.entries(found.map, nodes, digest, suspects)
        found.truncated |= any(page.truncated for page in pages)
        readings.append([page.as_mapping() for page in pages])
    found.drift = lasting(readings, evicts=found.evicts)
    found.moving = len(suspects) if not (found.drift or found.evicts) else 0


async def _repair(peers: Peers, found: Found, roles: dict[str, str], source: str | None) -> None:
    """Let each key be published by a node that holds it as most nodes do."""
    nodes = list(found.nodes)
    if source is not None and source not in nodes:
        raise click.UsageError(f"--source: {source} is none of {', '.join(nodes)}")
    able = [node for node in nodes if Role(roles[node]).publishes]
    if not able or (source is not None and source not in able):
        raise BridgeError(
            f"map {found.map}: {source or 'no node'} publishes it, so nothing can be repaired",
            hint="give one node the role publish or replicate",
        )
    wanted: dict[str, list[bytes]] = {}
    for drift in found.drift:
        chosen = nodes.index(source) if source else most_held(drift.values, evicts=found.evicts)
        right = drift.values[chosen]
        if right is None and found.evicts:
            continue  # the source has dropped it, which is no reason to delete it elsewhere
        holders = [node for node in able if drift.values[nodes.index(node)] == right]
        wanted.setdefault((holders or able)[0], []).append(drift.key)
    for node, keys in wanted.items():
        for at in range(0, len(keys), REPAIRED_PER_CALL):
            some = keys[at : at + REPAIRED_PER_CALL]
            column = np.frombuffer(b"".join(some), np.uint8).reshape(len(some), -1)
            found.repaired += await peers.repair(found.map, node, column)


def _print(found: Found, *, as_json: bool) -> None:
    shown = found.drift[:KEYS_SHOWN]
    if as_json:
        output.print_json(
            {
                "map": found.map,
                "equal": not found.drift,
                "nodes": found.nodes,
                "left_out": found.left_out,
                "rounds": found.rounds,
                "drift": len(found.drift),
                "moving_buckets": found.moving,
                "truncated": found.truncated,
                "evicts": found.evicts,
                "repaired": found.repaired,
                "keys": [drift.key.hex() for drift in shown],
            }
        )
        return
    output.print_table(["node", "entries"], list(found.nodes.items()))
    for node, reason in found.left_out.items():
        output.line(f"{node}: left out, {reason}")
    if found.moving:
        output.line(f"{found.moving} of {found.buckets} parts change too fast to be compared")
    if found.evicts:
        output.line("an LRU map: each node drops entries by itself, only values are compared")
    if not found.drift:
        output.line("equal" if not found.moving else "no drift in what could be compared")
    for drift in shown:
        output.line(f"differs: {drift.key.hex()}")
    if found.repaired:
        output.line(f"published {found.repaired} keys again; verify once more to see them equal")
