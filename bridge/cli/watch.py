"""``mapbridge watch``: the changes of a map out of the stream, as they happen."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import Item, Received
from bridge.cli.broker import reader_bus
from bridge.cli.layouts import layout_or_reason
from bridge.cli.names import MAP, NODE
from bridge.cli.options import config_option
from bridge.cli.output import json_option
from bridge.cli.places import PLACE_OR_SNAPSHOT, Place
from bridge.cli.watch_output import Columns, JsonLines, Lines, Printer
from bridge.config import Config, load
from bridge.feed.layouts import LayoutBook
from bridge.feed.past import needed_past
from bridge.feed.rows import FieldsOf
from bridge.feed.where import Where
from bridge.layout.types import Layout
from bridge.model import Delta, Op, Position


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which changes are shown."""

    maps: tuple[str, ...]
    nodes: frozenset[str]
    operations: frozenset[str]
    where: Where | None
    as_hex: bool

    def rows(
        self, delta: Delta, layout: Layout | None
    ) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
        """Those of a batch. Raises ``WhereError``."""
        wanted = np.ones(len(delta.batch), np.bool_)
        if self.nodes and delta.origin.node not in self.nodes:
            wanted[:] = False
        if self.operations:
            numbers = [int(Op[name.upper()]) for name in self.operations]
            wanted &= np.isin(delta.batch.ops, numbers)
        if self.where is not None and wanted.any():
            wanted &= self.where.mask(delta, layout)
        return np.flatnonzero(wanted)


@click.command("watch")
@click.argument("names", metavar="MAP...", nargs=-1, required=True, type=MAP)
@config_option
@click.option(
    "--from",
    "start",
    type=PLACE_OR_SNAPSHOT,
    help="Begin there; without it: with what comes now.",
)
@click.option("--from-start", is_flag=True, help="Begin with the oldest change that is kept.")
@click.option(
    "--node",
    "nodes",
    multiple=True,
    type=NODE,
    metavar="NODE",
    help="Only changes of this node (repeatable).",
)
@click.option(
    "--op",
    "operations",
    type=click.Choice([op.name.lower() for op in Op]),
    multiple=True,
    help="Only changes of this kind (repeatable).",
)
@click.option("--where", "condition", metavar="FILTER", help="Only changes that meet this.")
@click.option("--hex", "as_hex", is_flag=True, help="Keys and values in hexadecimal only.")
@click.option("--table", "as_table", is_flag=True, help="A table with a column per field.")
@click.option("--count", type=click.IntRange(min=1), help="Stop after so many changes.")
@json_option
def command(
    names: tuple[str, ...],
    config_path: Path,
    start: Place | None,
    from_start: bool,
    nodes: tuple[str, ...],
    operations: tuple[str, ...],
    condition: str | None,
    as_hex: bool,
    as_table: bool,
    count: int | None,
    as_json: bool,
) -> None:
    """Print the changes of MAPs in the order of the stream, until Ctrl-C.

    MAP is a map's name in the stream. Every change has its wall-clock time, node, operation, key
    and value. Where the layout that a change names is known, here or beside the log, keys and
    values are shown by their fields, else in hexadecimal; with --json, one object per line has
    both.

    A place is a sequence of the stream, a time, a while ago (10m), start, or snapshot: the entries
    of each map's newest snapshot, and what has changed since. A FILTER compares fields of key and
    value, and map, node, op, cause, writer, sequence.

    \b
    Examples:
      mapbridge watch conntrack -c node-a.toml
      mapbridge watch conntrack --from 10m --where 'value.state == "ESTABLISHED"'
      mapbridge watch conntrack --where 'key.address["*"] in "10.0.0.0/8" and op == "delete"'
      mapbridge watch conntrack --from-start --json | jq .key
    """
    config = load(config_path)
    for name in names:
        try:
            config.map(name)
        except KeyError:
            known = ", ".join(sorted(entry.name for entry in config.maps)) or "none"
            raise click.BadParameter(
                f"{name!r} is not in {config_path} (it has: {known})"
            ) from None
    if as_table and as_json:
        raise click.UsageError("--table and --json: choose one")
    where = None if condition is None else Where(condition)
    chosen = Chosen(names, frozenset(nodes), frozenset(operations), where, as_hex)
    own = _own_layouts(config, chosen)
    printer: Printer = JsonLines() if as_json else Columns() if as_table else Lines()
    try:
        begin = Place() if from_start else start
        asyncio.run(_watch(config, chosen, own, begin, count, printer))
    finally:
        printer.close()


async def _watch(
    config: Config,
    chosen: Chosen,
    own: dict[str, Layout | str],
    begin: Place | None,
    count: int | None,
    printer: Printer,
) -> None:
    async with reader_bus(config, "watch") as bus:
        book = LayoutBook(bus, config.node.cluster, own, _say)
        fields_of = FieldsOf()
        left = count
        async with contextlib.aclosing(_items(bus, config.node.cluster, chosen, begin)) as items:
            async for item in items:
                if not isinstance(item, Received):
                    click.echo(f"skipped: {item}", err=True)
                    continue
                layout = await book.of(item.delta)
                rows = chosen.rows(item.delta, layout)[:left]
                if len(rows):
                    printer.show(item, rows, None if chosen.as_hex else fields_of(layout))
                    left = None if left is None else left - len(rows)
                if left == 0:
                    break


async def _items(
    bus: NatsBus, cluster: str, chosen: Chosen, begin: Place | None
) -> AsyncGenerator[Item, None]:
    """What the log holds from ``begin`` on, for ever; entries of snapshots go before it."""
    read: dict[str, int] = {}
    if begin is not None and begin.snapshot:
        last = (await bus.log_state(cluster)).last
        for name in chosen.maps:
            past = await needed_past(bus, cluster, name, last, _say)
            read[name] = past.position
            async for entries in past.entries():
                yield entries
        after = Position(min(read.values()))
    else:
        after = await _position(bus, cluster, begin)
    subscription = bus.subscribe(cluster, chosen.maps, after)
    try:
        async for item in subscription:
            if isinstance(item, Received) and item.sequence <= read.get(item.delta.origin.map, 0):
                continue  # in the snapshot of its map already
            yield item
    finally:
        await subscription.close()


async def _position(bus: NatsBus, cluster: str, begin: Place | None) -> Position:
    last = (await bus.log_state(cluster)).last
    if begin is None:
        return Position(last)
    return Position(min(await begin.first(bus, cluster) - 1, last))


def _own_layouts(config: Config, chosen: Chosen) -> dict[str, Layout | str]:
    """The layouts of this machine's maps; a filter is checked against them before it begins."""
    found = {name: layout_or_reason(config.map(name)) for name in chosen.maps}
    for layout in found.values():
        if chosen.where is not None and isinstance(layout, Layout):
            chosen.where.check(layout)
    return {} if chosen.as_hex and chosen.where is None else found


def _say(text: str) -> None:
    click.echo(text, err=True)
