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
from bridge.errors import BridgeError
from bridge.kernel.maps import open_map
from bridge.layout.fingerprint import fingerprint
from bridge.layout.reader import read_layout
from bridge.layout.render import Renderer, Shown, line_of
from bridge.layout.types import Layout
from bridge.model import Delta, MapSelector, Op, Position
from bridge.node.instance import read_status

BYTES_SHOWN = 24  # of a value, to people; JSON has all of it


@click.command("watch")
@click.argument("name", metavar="MAP")
@config_option
@click.option("--from-start", is_flag=True, help="Begin with the oldest change that is kept.")
@click.option("--node", "nodes", multiple=True, help="Only changes of this node (repeatable).")
@click.option("--hex", "as_hex", is_flag=True, help="Keys and values in hexadecimal only.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many changes.")
@json_option
def command(
    name: str,
    config_path: Path,
    from_start: bool,
    nodes: tuple[str, ...],
    as_hex: bool,
    count: int | None,
    as_json: bool,
) -> None:
    """Print the changes of MAP in the order of the stream, until Ctrl-C.

    MAP is the map's name in the stream. Every change has its wall-clock time, node, operation, key
    and value. Where this machine has the map, and the map has type information, keys and values are
    shown by their fields, else in hexadecimal; with --json, one object per line has both.

    \b
    Examples:
      mapbridge watch conntrack -c node-a.toml
      mapbridge watch conntrack --from-start --json | jq .key
    """
    config = load(config_path)
    if name not in {entry.name for entry in config.maps}:
        known = ", ".join(entry.name for entry in config.maps) or "none"
        raise click.BadParameter(f"{name!r} is not in {config_path} (it has: {known})")
    fields = None if as_hex else _fields(config.map(name).selector)
    asyncio.run(_watch(config, name, from_start, set(nodes), fields, count, as_json))


async def _watch(
    config: Config,
    name: str,
    from_start: bool,
    nodes: set[str],
    fields: Fields | None,
    count: int | None,
    as_json: bool,
) -> None:
    bus = await open_bus(
        BusSettings(node=f"{config.node.name}-watch-{os.getpid()}", urls=broker_urls(config)),
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
                lines = list(islice(_lines(item, fields, as_json), left))
                click.echo("\n".join(lines))
                left = None if left is None else left - len(lines)
                if left == 0:
                    break
        await subscription.close()
    finally:
        await bus.close()


def broker_urls(config: Config) -> tuple[str, ...]:
    """The broker's addresses; of an embedded server, where the running bridge says it listens."""
    if not config.broker.embedded:
        return config.broker.urls
    running = read_status(config.node.state_directory) or {}
    broker = running.get("broker")
    url = broker.get("url") if isinstance(broker, dict) else None
    return (url or f"nats://{config.broker.listen}",)


def _fields(selector: MapSelector) -> Fields | None:
    """The fields of this machine's map; without them changes are shown in hexadecimal."""
    try:
        with open_map(selector) as opened:
            return Fields(read_layout(opened))
    except BridgeError as error:
        click.echo(f"fields are not shown: {error}", err=True)
        return None


class Fields:
    """Shows keys and values of a map by their fields, as far as the layout fits the change."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout
        self._fingerprint = fingerprint(layout)
        self._key = Renderer(layout.key, "key")
        self._value = Renderer(layout.value, "value")

    def rows(self, delta: Delta) -> Iterator[tuple[Shown, Shown]] | None:
        """Key and value of each change, made as they are asked for; ``None``: another layout."""
        batch = delta.batch
        sizes = (self._layout.key.size, self._layout.value.size)
        if (batch.key_size, batch.value_size) != sizes:
            return None
        if delta.layout not in (0, self._fingerprint):
            return None
        return zip(self._key.rows(batch.keys), self._value.rows(batch.values), strict=True)


def _lines(item: Received, fields: Fields | None, as_json: bool) -> Iterator[str]:
    """One line per change. Here, for people, a loop over changes is right."""
    shown = None if fields is None else fields.rows(item.delta)
    for row in range(len(item.delta.batch)):
        change = None if shown is None else next(shown)
        if as_json:
            yield orjson.dumps(_object(item, row, change)).decode()
        else:
            yield _line(item.delta, row, change)


def _line(delta: Delta, row: int, change: tuple[Shown, Shown] | None) -> str:
    batch = delta.batch
    time = _wall_clock(delta, row).strftime("%H:%M:%S.%f")
    updated = batch.ops[row] == Op.UPDATE
    if change is not None:
        key, value = line_of(change[0]), line_of(change[1]) if updated else ""
    else:
        key = bytes(batch.keys[row]).hex()
        value = bytes(batch.values[row]).hex() if updated else ""
        if len(value) > 2 * BYTES_SHOWN:
            value = f"{value[: 2 * BYTES_SHOWN]}… ({batch.value_size} bytes)"
    operation = Op(batch.ops[row]).name.lower()
    arrow = "  ->  " if change is not None and value else "  "
    return f"{time}  {delta.origin.node}  {operation:<6}  {key}{arrow}{value}".rstrip()


def _object(item: Received, row: int, change: tuple[Shown, Shown] | None) -> dict[str, object]:
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
    if change is not None:
        key, value = change
        answer["fields"] = {"key": key, "value": value} if "value" in answer else {"key": key}
    return answer


def _wall_clock(delta: Delta, row: int) -> datetime:
    nanoseconds = int(delta.batch.left[row]) + delta.clock_offset
    return datetime.fromtimestamp(nanoseconds / 1e9, UTC)
