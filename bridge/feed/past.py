"""Where the history of a map begins when the log has forgotten its beginning: with a snapshot.

Invariant: the entries of a snapshot at position S, and then the messages behind S, give what the
whole log gives at its end. Up to a place between, an entry that changed while the snapshot was
taken may have its newer value already, since the scan saw it: ``doubtful`` counts such keys.
"""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass

import numpy as np

from bridge.bus.nats_bus import NatsBus
from bridge.bus.nats_snapshots import NatsSnapshotStore
from bridge.bus.protocol import Received
from bridge.bus.snapshots import Snapshots, SnapshotStoreError
from bridge.bus.streams import LogSettings
from bridge.core.snapshots import Log, usable
from bridge.errors import UnavailableError
from bridge.feed.fold import Entry
from bridge.feed.replay import history
from bridge.model import Delta, Manifest, Op

CLOCKS_APART_NS = 60_000_000_000  # at most, of who took a snapshot and the broker


class NoSnapshotError(UnavailableError):
    """There is no snapshot from which the log goes on."""


@dataclass(frozen=True, slots=True)
class Past:
    """A snapshot of one map as the beginning of its history."""

    manifest: Manifest
    _snapshots: Snapshots

    @property
    def position(self) -> int:
        """The last message of the log that counts; history goes on behind it."""
        return self.manifest.position

    async def entries(self) -> AsyncIterator[Received]:
        """Its entries as updates by the node that took it, at the time when that was.

        Raises ``SnapshotBrokenError`` when a newer one takes its place meanwhile.
        """
        manifest, first = self.manifest, 1
        taken_ns = int(manifest.taken_at * 1e9)
        taken = max(taken_ns - manifest.clock_offset, 0)
        async for batch in self._snapshots.parts(manifest):
            dated = dataclasses.replace(batch, left=np.full(len(batch), taken, np.uint64))
            delta = Delta(manifest.origin, first, dated, manifest.clock_offset, manifest.layout)
            yield Received(manifest.position, taken_ns, delta)
            first += len(batch)


async def newest_past(
    bus: NatsBus, cluster: str, name: str, last: int, report: Callable[[str], None]
) -> Past | None:
    """The newest snapshot at ``last`` or before from which the log goes on; ``None``: none."""
    store = NatsSnapshotStore(bus, cluster, LogSettings(), "reader")
    snapshots = Snapshots(store, cluster)
    state = await bus.log_state(cluster)
    try:
        found = await snapshots.manifests(name)
    except SnapshotStoreError as error:
        report(f"snapshots cannot be read: {error}")
        return None
    chosen = usable(found, Log(state.id, max(state.first, 1), min(last, state.last)))
    if chosen is None:
        return None
    if chosen.anchor is not None:
        stored = await bus.stored_at(cluster, chosen.anchor.sequence)
        if stored is not None and stored != chosen.anchor.stored_at_ns:
            report("a snapshot is of a log that was made anew: it is left out")
            return None
    return Past(chosen, snapshots)


async def needed_past(
    bus: NatsBus, cluster: str, name: str, last: int, report: Callable[[str], None]
) -> Past:
    """The same. Raises ``NoSnapshotError``."""
    found = await newest_past(bus, cluster, name, last, report)
    if found is None:
        raise NoSnapshotError(
            f"map {name}: has no snapshot from which the log goes on",
            hint="take one with `mapbridge snapshot`",
        )
    return found


async def forgotten(bus: NatsBus, cluster: str) -> bool:
    """Whether the log has lost its beginning; of which maps, it cannot tell."""
    return (await bus.log_state(cluster)).first > 1


async def doubtful(
    bus: NatsBus, cluster: str, past: Past, last: int, entries: Mapping[bytes, Entry]
) -> int:
    """How many keys of the fold up to ``last`` may be as they were a little later.

    Those that the snapshot alone tells of, or that are missing and were deleted, and that changed
    behind ``last`` before the snapshot was whole.
    """
    end = (await bus.log_state(cluster)).last
    until_ns = int(past.manifest.taken_at * 1e9) + CLOCKS_APART_NS
    found: set[bytes] = set()
    async for item in history(bus, cluster, past.manifest.origin.map, last + 1, end):
        if not isinstance(item, Received):
            continue
        if item.stored_at_ns > until_ns:
            break
        batch = item.delta.batch
        for row, op in zip(batch.keys, batch.ops.tolist(), strict=True):
            key = row.tobytes()
            entry = entries.get(key)
            told = op == Op.DELETE if entry is None else entry.written.sequence == past.position
            if told:
                found.add(key)
    return len(found)
