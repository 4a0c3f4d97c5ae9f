"""``mapbridge at``: a map as it was, from the log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import numpy as np
import orjson

from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import Gap, Received
from bridge.cli.broker import reader_bus
from bridge.cli.layouts import configured, layout_or_reason
from bridge.cli.names import MAP
from bridge.cli.options import config_option
from bridge.cli.output import json_option
from bridge.cli.places import PLACE, Place
from bridge.config import Config, load
from bridge.feed.fold import Entry, Fold
from bridge.feed.layouts import LayoutBook
from bridge.feed.past import Past, doubtful, forgotten, newest_past
from bridge.feed.replay import history
from bridge.feed.rows import Fields, FieldsOf
from bridge.layout.render import Shown, line_of, wall_clocks


@click.command("at")
@click.argument("place", metavar="TIME", type=PLACE)
@click.argument("name", metavar="MAP", type=MAP)
@config_option
@click.option("--since", type=PLACE, help="Only what has changed since then.")
@json_option
def command(place: Place, name: str, config_path: Path, since: Place | None, as_json: bool) -> None:
    """Print MAP as it was at TIME: every entry, with who wrote it and when.

    TIME is a time, a while ago (10m) or a sequence of the stream, which counts then. The map is
    that of the whole cluster, folded from the log; where that has forgotten its beginning, from the
    newest snapshot before TIME. With --since, entries that are the same at both times are left out,
    and lines begin with + (new), - (gone) or ~ (changed).

    \b
    Examples:
      mapbridge at 10m conntrack -c node-a.toml
      mapbridge at 2026-01-31T12:00:00Z conntrack --json
      mapbridge at 5m conntrack --since 1h
    """
    config = load(config_path)
    configured(config, name, config_path)
    asyncio.run(show(config, name, place, since, as_json=as_json))


async def show(
    config: Config, name: str, place: Place, since: Place | None, *, as_json: bool
) -> None:
    """Print the map as it was at ``place``, or what was different at ``since``."""
    cluster = config.node.cluster
    own = {name: layout_or_reason(config.map(name))}
    async with reader_bus(config, "at") as bus:
        last = await last_of(bus, cluster, place)
        before = 0 if since is None else await last_of(bus, cluster, since)
        if before > last:
            raise click.UsageError("the first time is later than the second")
        fold, earlier = Fold(), None
        layouts = _Layouts(LayoutBook(bus, cluster, own, _say))
        first_end = last if since is None else before
        past = await _begin(bus, cluster, name, first_end, fold, layouts)
        after = 0 if past is None else past.position
        if since is not None:
            await _fold(bus, config, name, (after + 1, before), fold, layouts)
            earlier, after = dict(fold.entries), before
        await _fold(bus, config, name, (after + 1, last), fold, layouts)
        if past is not None:
            held = fold.entries if earlier is None else earlier
            doubts = await doubtful(bus, cluster, past, first_end, held)
            if doubts:
                _say(
                    f"up to {doubts} keys may be as they were later: "
                    "they changed while the snapshot was taken"
                )
    lines = _lines(fold.entries, earlier, layouts, as_json)
    for line in lines:
        click.echo(line)
    if not as_json:
        _say(f"{len(fold.entries)} entries, up to message {last}")


async def _begin(
    bus: NatsBus, cluster: str, name: str, last: int, fold: Fold, layouts: _Layouts
) -> Past | None:
    """Fold the newest snapshot up to ``last``, when the log has lost its beginning."""
    past = (
        await newest_past(bus, cluster, name, last, _say) if await forgotten(bus, cluster) else None
    )
    if past is None:
        return None
    async for item in past.entries():
        fold.add(item)
        await layouts.learn(item)
    _say(f"begins with the snapshot at message {past.position}: the log has forgotten older ones")
    return past


async def _fold(
    bus: NatsBus, config: Config, name: str, span: tuple[int, int], fold: Fold, layouts: _Layouts
) -> None:
    """Add the messages from the first to the last sequence of ``span``."""
    async for item in history(bus, config.node.cluster, name, *span):
        if isinstance(item, Received):
            fold.add(item)
            await layouts.learn(item)
        elif isinstance(item, Gap):
            _say(f"the log begins at {item.last_missing + 1}: older entries are not known")
        else:
            _say(f"skipped: {item}")


async def last_of(bus: NatsBus, cluster: str, place: Place) -> int:
    """The last sequence that counts: a named one itself, of a time all stored before it."""
    state = await bus.log_state(cluster)
    if place.sequence is not None:
        return min(place.sequence, state.last)
    return min(await place.first(bus, cluster) - 1, state.last)


class _Layouts:
    """The layouts of what was folded, by the number that entries name."""

    def __init__(self, book: LayoutBook) -> None:
        self._book = book
        self._fields_of = FieldsOf()
        self._known: dict[int, Fields | None] = {}

    async def learn(self, item: Received) -> None:
        number = item.delta.layout
        if number not in self._known:
            self._known[number] = self._fields_of(await self._book.of(item.delta))

    def shown(self, key: bytes, entry: Entry) -> tuple[Shown, Shown] | None:
        fields = self._known.get(entry.written.layout)
        if fields is None:
            return None
        one = (np.frombuffer(raw, np.uint8).reshape(1, -1) for raw in (key, entry.value))
        return fields.keys(next(one))[0], fields.values(next(one), entry.written.clock_offset)[0]


def _lines(
    entries: Mapping[bytes, Entry],
    earlier: Mapping[bytes, Entry] | None,
    layouts: _Layouts,
    as_json: bool,
) -> Iterator[str]:
    if earlier is None:
        for key, entry in entries.items():
            yield _line("", key, entry, layouts, as_json)
        return
    for key, entry in entries.items():
        old = earlier.get(key)
        if old is None or old.value != entry.value:
            yield _line("+" if old is None else "~", key, entry, layouts, as_json)
    for key, entry in earlier.items():
        if key not in entries:
            yield _line("-", key, entry, layouts, as_json)


def _line(mark: str, key: bytes, entry: Entry, layouts: _Layouts, as_json: bool) -> str:
    shown, written = layouts.shown(key, entry), entry.written
    (time,) = wall_clocks(np.array([written.time_ns], np.int64))
    if as_json:
        document: dict[str, object] = {"key": key.hex(), "value": entry.value.hex()}
        if mark:
            document["change"] = {"+": "new", "-": "gone", "~": "changed"}[mark]
        if shown is not None:
            document["fields"] = {"key": shown[0], "value": shown[1]}
        document |= {"node": written.node, "time": time, "stream_sequence": written.sequence}
        return orjson.dumps(document).decode()
    texts = (key.hex(), entry.value.hex()) if shown is None else map(line_of, shown)
    head = f"{mark} " if mark else ""
    return head + "  ->  ".join(texts) + f"  ({written.node}, {time[:26]})"


def _say(text: str) -> None:
    click.echo(text, err=True)
