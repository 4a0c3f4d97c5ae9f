"""A map as it was: the fold of the log up to a place.

Invariant: after each message, a key is held with the value of its last update in the log's order,
or not at all when a delete came later. Evictions are left out, as nodes leave them out: that one
node had no room says nothing of the map. What the log has forgotten, the fold does not know.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bridge.bus.protocol import Received
from bridge.core.keys import last_rows
from bridge.model import U8, Op


@dataclass(frozen=True, slots=True)
class Written:
    """Who wrote an entry, and where it stands in the log."""

    node: str
    time_ns: int
    sequence: int  # of the message
    layout: int
    clock_offset: int  # of the node then


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of the map."""

    value: bytes
    written: Written


class Fold:
    """The entries of one map; ``add`` takes its messages in the log's order."""

    def __init__(self) -> None:
        self.entries: dict[bytes, Entry] = {}
        self.changes = 0
        self.evictions = 0

    def add(self, item: Received) -> None:
        delta = item.delta
        batch = delta.batch
        self.changes += len(batch)
        if int(batch.ops.max()) >= Op.EVICT:
            self.evictions += int(np.count_nonzero(batch.ops == Op.EVICT))
            batch = batch.take(batch.ops != Op.EVICT)
            if not len(batch):
                return
        rows = last_rows(batch.keys)
        last = batch if rows is None else batch.take(rows)
        gone = last.ops == Op.DELETE
        for key in _split(last.keys[gone]):
            self.entries.pop(key, None)
        kept = last if not gone.any() else last.take(~gone)
        origin = delta.origin
        for key, value, left in zip(
            _split(kept.keys), _split(kept.values), kept.left.tolist(), strict=True
        ):
            written = Written(
                origin.node,
                left + delta.clock_offset,
                item.sequence,
                delta.layout,
                delta.clock_offset,
            )
            self.entries[key] = Entry(value, written)


def _split(rows: U8) -> list[bytes]:
    data, size = rows.tobytes(), rows.shape[1]
    return [data[at : at + size] for at in range(0, len(data), size)]
