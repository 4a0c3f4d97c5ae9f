"""``mapbridge watch``: the changes of a map out of the stream, as they happen."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

import click
import orjson

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import open_bus
from bridge.bus.protocol import Received
from bridge.cli.options import config_option
from bridge.cli.output import json_option
from bridge.config import Config, load
from bridge.model import Delta, Op, Position
from bridge.node.instance import read_status

BYTES_SHOWN = 24  # of a value, to people; JSON has all of it


@click.command("watch")
@click.argument("name", metavar="MAP")
@config_option
@click.option("--from-start", is_flag=True, help="Begin with the oldest change that is kept.")
@click.option("--node", "nodes", multiple=True, help="Only changes of this node (repeatable).")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many changes.")
@json_option
def command(
    name: str,
    config_path: Path,
    from_start: bool,
    nodes: tuple[str, ...],
    count: int | None,
    as_json: bool,
) -> None:
    """Print the changes of MAP in the order of the stream, until Ctrl-C.

    MAP is the map's name in the stream. Every change has its wall-clock time, node, operation, key
    and value; with --json, one object per line with key and value in hexadecimal.

    \b
    Examples:
      mapbridge watch conntrack -c node-a.toml
      mapbridge watch conntrack --from-start --json | jq .key
    """
    config = load(config_path)
    if name not in {entry.name for entry in config.maps}:
        known = ", ".join(entry.name for entry in config.maps) or "none"
        raise click.BadParameter(f"{name!r} is not in {config_path} (it has: {known})")
    asyncio.run(_watch(config, name, from_start, set(nodes), count, as_json))


async def _watch(
    config: Config, name: str, from_start: bool, nodes: set[str], count: int | None, as_json: bool
) -> None:
    bus = await open_bus(
        BusSettings(node=f"{config.node.name}-watch-{os.getpid()}", urls=_urls(config)),
        report=lambda text: click.echo(text, err=True),
    )
    try:
        start = 0 if from_start else (await bus.log_state(config.node.cluster)).last
        subscription = bus.subscribe(config.node.cluster, [name], Position(start))
        left = count
        async for item in subscription:
            if not isinstance(item, Received):
                click.echo(f"skipped: {item}", err=True)
            elif not nodes or item.delta.origin.node in nodes:
                lines = list(islice(_lines(item, as_json), left))
                click.echo("\n".join(lines))
                left = None if left is None else left - len(lines)
                if left == 0:
                    break
        await subscription.close()
    finally:
        await bus.close()


def _urls(config: Config) -> tuple[str, ...]:
    """The broker's addresses; of an embedded server, where the running bridge says it listens."""
    if not config.broker.embedded:
        return config.broker.urls
    running = read_status(config.node.state_directory) or {}
    broker = running.get("broker")
    url = broker.get("url") if isinstance(broker, dict) else None
    return (url or f"nats://{config.broker.listen}",)


def _lines(item: Received, as_json: bool) -> Iterator[str]:
    """One line per change. Here, for people, a loop over changes is right."""
    delta = item.delta
    batch = delta.batch
    for row in range(len(batch)):
        if as_json:
            yield orjson.dumps(_object(item, row)).decode()
            continue
        time = _wall_clock(delta, row).strftime("%H:%M:%S.%f")
        value = bytes(batch.values[row]).hex() if batch.ops[row] == Op.UPDATE else ""
        if len(value) > 2 * BYTES_SHOWN:
            value = f"{value[: 2 * BYTES_SHOWN]}… ({batch.value_size} bytes)"
        operation = Op(batch.ops[row]).name.lower()
        key = bytes(batch.keys[row]).hex()
        yield f"{time}  {delta.origin.node}  {operation:<6}  {key}  {value}".rstrip()


def _object(item: Received, row: int) -> dict[str, object]:
    delta = item.delta
    batch = delta.batch
    operation = Op(batch.ops[row])
    answer: dict[str, object] = {
        "time": _wall_clock(delta, row).isoformat(),
        "cluster": delta.origin.cluster,
        "map": delta.origin.map,
        "node": delta.origin.node,
        "cause": batch.cause.name.lower(),
        "op": operation.name.lower(),
        "key": bytes(batch.keys[row]).hex(),
        "writer": int(batch.writers[row]),
        "sequence": delta.first_sequence + row,
        "stream_sequence": item.sequence,
    }
    if operation == Op.UPDATE:
        answer["value"] = bytes(batch.values[row]).hex()
    return answer


def _wall_clock(delta: Delta, row: int) -> datetime:
    nanoseconds = int(delta.batch.left[row]) + delta.clock_offset
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
