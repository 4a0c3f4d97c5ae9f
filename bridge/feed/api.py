"""The changes of maps for programs in Python: one by one, or as batches of numpy columns.

``import bridge`` offers the names here; see docs/reference/python.md. Needs no privileges and no
map on the machine: layouts come from beside the log.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.places import sequence_at
from bridge.bus.protocol import Gap, Received
from bridge.feed.layouts import LayoutBook
from bridge.feed.log import items_until
from bridge.feed.rows import OPERATIONS, FieldsOf, tell_one_by_one
from bridge.feed.where import Where
from bridge.layout.columns import Decoder
from bridge.layout.types import Kind, Layout, leaves
from bridge.model import DeltaBatch, Op, Position

START = "start"
_LOG = logging.getLogger("bridge")

Column = npt.NDArray[np.generic]
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Change:
    """One change. Keys and values are as people and JSON have them; hexadecimal when no layout is.

    ``value`` is there for updates only, ``op`` is ``update``, ``delete`` or ``evict``. ``time_ns``
    is since 1970 by the clock of the node that wrote.
    """

    map: str
    node: str
    op: str
    key: Any  # what its fields are is known by the map's layout only
    value: Any
    time_ns: int
    writer: int
    sequence: int
    stream_sequence: int

    @property
    def time(self) -> datetime:
        return datetime.fromtimestamp(self.time_ns / 1e9, UTC)


@dataclass(frozen=True, slots=True)
class Batch:
    """Changes of one map by one node, in their order, as columns.

    ``changes`` has the bytes (``keys`` ``u8[n, k]``, ``values`` ``u8[n, v]``, rows of deletes
    zero). ``layout`` is ``None`` when nobody knows what they mean.
    """

    map: str
    node: str
    changes: DeltaBatch
    layout: Layout | None
    times_ns: npt.NDArray[np.int64]
    sequences: npt.NDArray[np.int64]
    stream_sequence: int
    clock_offset_ns: int  # of the node: time of day less the kernel's clock

    def __len__(self) -> int:
        return len(self.changes)

    def columns(self, *, labels: bool = False) -> dict[str, Column]:
        """One column of ``n`` per field, ready for a data frame.

        ``op``, ``time`` (``datetime64[ns]``), ``writer``, ``sequence``, then ``key.FIELD`` and
        ``value.FIELD``; elements of arrays have columns of their own (``value.n[0][1]``). Fields of
        a delete's value are zero. ``labels``: names instead of numbers for operations and enums.
        """
        batch = self.changes
        found: dict[str, Column] = {
            "op": _labelled(batch.ops, OPERATIONS) if labels else batch.ops,
            "time": self.times_ns.view("datetime64[ns]"),
            "writer": batch.writers,
            "sequence": self.sequences,
        }
        if self.layout is None:
            return found
        for role, kind, rows in (
            ("key", self.layout.key, batch.keys),
            ("value", self.layout.value, batch.values),
        ):
            decoder = Decoder(kind, role)
            held = decoder.columns(rows)
            for leaf in leaves(decoder.record):
                column, inner = held[leaf.path], leaf.field.type.innermost
                if labels and inner.kind is Kind.ENUM:
                    column = _labelled(column, {value: name for name, value in inner.enumerators})
                path = role if decoder.wrapped else f"{role}.{leaf.path}"
                found |= _by_element(path, column)
        return found


def _by_element(path: str, column: Column) -> dict[str, Column]:
    """Columns of one dimension each, with their indexes in the places that ``[]`` marks."""
    if column.ndim == 1:
        return {path: column}
    found = {}
    for place in np.ndindex(column.shape[1:]):
        named, left = path, list(place)
        while "[]" in named:
            named = named.replace("[]", f"[{left.pop(0)}]", 1)
        found[named + "".join(f"[{index}]" for index in left)] = column[(slice(None), *place)]
    return found


def _labelled(column: Column, names: Mapping[int, str]) -> Column:
    """Names of numbers; one without a name is written as its digits."""
    numbers, inverse = np.unique(column, return_inverse=True)
    texts = np.array([names.get(number, str(number)) for number in numbers.tolist()])
    labelled: Column = texts[inverse.reshape(column.shape)]
    return labelled


async def subscribe(
    maps: str | Sequence[str],
    *,
    url: str = "nats://127.0.0.1:4222",
    cluster: str = "default",
    start: int | datetime | str | None = None,
    where: str | None = None,
    follow: bool = True,
    settings: BusSettings | None = None,
    report: Report = _LOG.warning,
) -> AsyncGenerator[Change, None]:
    """The changes of maps, in the order of the log, each once, across failures of the broker.

    start     where to begin: a sequence of the log, a time, ``"start"``; ``None``: what comes now
    where     a filter, as `mapbridge watch --where` takes it; raises ``WhereError``
    follow    ``False`` ends at what is the end of the log when it begins
    settings  how to connect, where a URL does not say enough (credentials, TLS)
    report    gets a sentence when a message cannot be used, or expired before it was read
    """
    fields_of = FieldsOf()
    found = batches(
        maps,
        url=url,
        cluster=cluster,
        start=start,
        where=where,
        follow=follow,
        settings=settings,
        report=report,
    )
    try:
        async for batch in found:
            shown = tell_one_by_one(batch.changes, fields_of(batch.layout), batch.clock_offset_ns)
            for row, (op, key, value) in enumerate(shown):
                yield Change(
                    batch.map,
                    batch.node,
                    op,
                    key,
                    value,
                    int(batch.times_ns[row]),
                    int(batch.changes.writers[row]),
                    int(batch.sequences[row]),
                    batch.stream_sequence,
                )
    finally:
        await found.aclose()


async def batches(
    maps: str | Sequence[str],
    *,
    url: str = "nats://127.0.0.1:4222",
    cluster: str = "default",
    start: int | datetime | str | None = None,
    where: str | None = None,
    follow: bool = True,
    settings: BusSettings | None = None,
    report: Report = _LOG.warning,
) -> AsyncGenerator[Batch, None]:
    """The same as columns: one ``Batch`` per message of the log, with the rows that are meant."""
    names = [maps] if isinstance(maps, str) else list(maps)
    chosen = None if where is None else Where(where)
    bus = await open_bus(settings or BusSettings(_reader_name(), (url,)), report)
    try:
        book = LayoutBook(bus, cluster, report=report)
        last = (await bus.log_state(cluster)).last
        after = min(await _first(bus, cluster, start, last) - 1, last)
        if not follow and after >= last:
            return
        subscription = bus.subscribe(cluster, names, Position(after))
        async for item in items_until(subscription, None if follow else last):
            if not isinstance(item, Received):
                report(_told(item))
                continue
            batch = await _batch(item, book, chosen)
            if len(batch):
                yield batch
    finally:
        await bus.close()


async def _batch(item: Received, book: LayoutBook, chosen: Where | None) -> Batch:
    delta = item.delta
    layout = await book.of(delta)
    changes = delta.batch
    rows = np.arange(len(changes))
    if chosen is not None:
        rows = np.flatnonzero(chosen.mask(delta, layout))
        changes = changes.take(rows)
    times = changes.left.astype(np.int64) + delta.clock_offset
    return Batch(
        delta.origin.map,
        delta.origin.node,
        changes,
        layout,
        times,
        delta.first_sequence + rows.astype(np.int64),
        item.sequence,
        delta.clock_offset,
    )


async def _first(bus: NatsBus, cluster: str, start: int | datetime | str | None, last: int) -> int:
    match start:
        case None:
            return last + 1
        case int():
            return max(start, 1)
        case datetime():
            return await sequence_at(bus, cluster, int(start.timestamp() * 1e6) * 1000)
        case "start":
            return 1
    raise ValueError(f"start: must be a sequence, a datetime, {START!r} or None (got {start!r})")


def _told(item: object) -> str:
    if isinstance(item, Gap):
        return f"messages {item.first_missing} to {item.last_missing} expired before they were read"
    return f"a message was skipped: {item}"


def _reader_name() -> str:
    import secrets

    return f"reader-{secrets.token_hex(6)}"


__all__ = ["START", "Batch", "BusSettings", "Change", "Op", "batches", "subscribe"]
