"""Takes the snapshots of one map: when one is due, or when a person asks for one.

Whoever finds that one is due takes the map's lease first, renews it while it works, and gives it
back. The rules of when and whether are ``bridge.core.snapshots``; here they meet clock and broker.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from bridge.bus.protocol import Bus, shared_pause
from bridge.bus.publish_loop import rows_per_message
from bridge.bus.snapshots import (
    SnapshotConflictError,
    Snapshots,
    SnapshotStoreError,
    part_of,
)
from bridge.core.digest import rows_digest
from bridge.core.snapshots import (
    LEASE_SECONDS,
    Facts,
    Lease,
    Log,
    Retry,
    Run,
    Since,
    Step,
    Triggers,
    next_slot,
    unfit,
    usable,
)
from bridge.errors import BridgeError, Exit
from bridge.kernel.clock import clock_offset_ns, ktime_ns
from bridge.model import (
    U8,
    Anchor,
    Delta,
    DeltaBatch,
    Manifest,
    MapInfo,
    Op,
    Origin,
    Part,
    new_incarnation,
)
from bridge.node.choosing import log_of
from bridge.node.following import Follower
from bridge.node.report import Report
from bridge.wire.codec import encode

LOOK_SECONDS_MIN = 5.0
LOOK_RATE_MAX = 4.0  # of all readers of the log together, a second: one of them is enough
POLL_SECONDS = 0.1
SWEEP_SECONDS_MAX = 60.0

Chunks = Iterator[tuple[U8, U8]]


class SnapshotRefusedError(BridgeError):
    """No snapshot was taken, for a reason that may pass."""

    exit_code = Exit.TEMPORARY


class Scans(Protocol):
    """How a map is read: by itself, or as a part of the next sweep."""

    def share_sweep(self, name: str, take: Callable[[list[tuple[U8, U8]]], None]) -> bool: ...


class Readable(Protocol):
    """The part of a kernel map that is needed."""

    @property
    def info(self) -> MapInfo: ...
    def scan(self) -> Chunks: ...


@dataclass(slots=True)
class SnapshotCounters:
    """Snapshots taken by this node; what is known of the last one."""

    taken: int = 0
    discarded: int = 0
    reason: str = ""  # why the last one that was thrown away was
    position: int = 0
    entries: int = 0
    seconds: float = 0.0  # from the begin of its scan to its manifest


@dataclass(slots=True)
class _Ask:
    done: asyncio.Future[Manifest]


@dataclass(slots=True)
class SnapshotTaker:
    """``run`` is a task of its owner. ``facts`` tells how the map stands."""

    name: str
    cluster: str
    node: str
    publishes: bool
    bus: Bus
    snapshots: Snapshots
    map: Readable
    follower: Follower
    scans: Scans
    triggers: Triggers
    facts: Callable[[], Facts]
    report: Report
    counters: SnapshotCounters = field(default_factory=SnapshotCounters)
    _readers: int = 0
    _asked: _Ask | None = None
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _retry: Retry = field(default_factory=Retry)
    _lease: Lease = field(default_factory=lambda: Lease(f"{new_incarnation():016x}"))
    _lease_sequence: int = 0
    _renew_at: float = 0.0
    _since: Since = field(default_factory=Since)

    async def run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()
            self._wake.clear()
            asked, self._asked = self._asked, None
            try:
                manifest = await self._look(asked=asked is not None)
            except BridgeError as error:
                self._retry.failed(time.monotonic())
                self.counters.reason = str(error)
                self.report.warn_once(f"no snapshot: {error}", map=self.name)
                if asked is not None and not asked.done.done():
                    asked.done.set_exception(error)
            else:
                if asked is not None and manifest is not None and not asked.done.done():
                    asked.done.set_result(manifest)

    def _pause(self) -> float:
        return shared_pause(LOOK_SECONDS_MIN, self._readers, LOOK_RATE_MAX)

    async def take_now(self) -> Manifest:
        """Take one, due or not. Raises why not."""
        if self._asked is not None:
            raise SnapshotRefusedError(f"map {self.name}: a snapshot is being asked for already")
        self._asked = _Ask(asyncio.get_running_loop().create_future())
        done = self._asked.done
        self._wake.set()
        return await done

    async def _look(self, *, asked: bool) -> Manifest | None:
        state = await self.bus.log_state(self.cluster)
        self._readers = state.consumers
        log, now = log_of(state), time.monotonic()
        try:
            manifests = await self.snapshots.manifests(self.name)
        except SnapshotStoreError:
            if asked:
                raise
            return None
        newest = usable(manifests, log)
        read = self._since.look(newest, self.follower.position(), self.follower.bytes_read)
        why = self.triggers.due(newest, log, time.time(), read)
        if not asked and (not why or not self._retry.may(now) or unfit(self.facts())):
            return None
        if reason := unfit(self.facts()):
            raise SnapshotRefusedError(f"map {self.name}: no snapshot now, {reason}")
        sequence, holder = await self.snapshots.lease(self.name)
        if not self._lease.see(now, sequence, holder):
            if asked:
                raise SnapshotRefusedError(
                    f"map {self.name}: another node is taking a snapshot", hint="wait for it"
                )
            return None
        manifest = await self._take_leased(log, manifests, sequence)
        if manifest is None and asked:
            raise SnapshotRefusedError(
                f"map {self.name}: another node has just begun a snapshot", hint="wait for it"
            )
        return manifest

    async def _take_leased(
        self, log: Log, manifests: list[Manifest], sequence: int
    ) -> Manifest | None:
        try:
            await self._hold(sequence)
        except SnapshotConflictError:
            return None  # another node was faster
        try:
            manifest = await self._take(log, next_slot(manifests))
        finally:
            with contextlib.suppress(SnapshotStoreError, SnapshotConflictError):
                await self.snapshots.take_lease(self.name, "", self._lease_sequence)
        self._retry.done()
        self._since.look(manifest, self.follower.position(), self.follower.bytes_read)
        self.report.say(
            "snapshot taken",
            map=self.name,
            entries=manifest.rows,
            position=manifest.position,
            seconds=round(self.counters.seconds, 3),
        )
        return manifest

    async def _hold(self, sequence: int) -> None:
        self._lease_sequence = await self.snapshots.take_lease(self.name, self._lease.me, sequence)
        self._renew_at = time.monotonic() + LEASE_SECONDS / 3

    async def _keep(self) -> None:
        if time.monotonic() >= self._renew_at:
            await self._hold(self._lease_sequence)

    async def _take(self, log: Log, slot: int) -> Manifest:
        began, facts = time.monotonic(), self.facts()
        # In this order: what is applied while the scan runs must be read again by a joiner.
        run = Run(self.follower.position(), began, facts, captures=self.publishes)
        origin = Origin(self.cluster, self.name, self.node, new_incarnation())
        parts, first, digest = await self._store(origin, slot)
        run.scanned(ktime_ns())
        while (step := run.look(time.monotonic(), self.facts())) is Step.WAIT:
            await self._keep()
            await asyncio.sleep(POLL_SECONDS)
        if step is Step.DISCARD:
            self.counters.discarded += 1
            raise SnapshotRefusedError(f"map {self.name}: snapshot discarded, {run.reason}")
        await self._hold(self._lease_sequence)  # nobody else has begun to write into the slot
        info, position = self.map.info, run.position
        stored_at = await self.bus.stored_at(self.cluster, position)
        manifest = Manifest(
            origin=origin,
            log=log.id,
            position=position,
            anchor=None if stored_at is None else Anchor(position, stored_at),
            slot=slot,
            taken_at=time.time(),
            clock_offset=clock_offset_ns(),
            key_size=info.key_size,
            value_size=info.value_size,
            layout=self.follower.layout,
            parts=tuple(parts),
            first_part=first,
            digest=digest,
        )
        if (await self.bus.log_state(self.cluster)).id != log.id:
            raise SnapshotRefusedError(f"map {self.name}: the log was made anew meanwhile")
        await self.snapshots.seal(manifest)
        counters = self.counters
        counters.taken += 1
        counters.position, counters.entries = manifest.position, manifest.rows
        counters.seconds = time.monotonic() - began
        return manifest

    async def _store(self, origin: Origin, slot: int) -> tuple[list[Part], int, int]:
        """Read the map and store what it holds; the parts, where the first one is, the digest."""
        parts: list[Part] = []
        first = digest = 0
        row = 1
        async for batch in self._batches():
            data = encode(Delta(origin, row, batch))
            at = await self.snapshots.put_part(self.name, slot, len(parts), data)
            first = first or at
            parts.append(part_of(data, len(batch)))
            digest = (digest + rows_digest(batch)) & 0xFFFF_FFFF_FFFF_FFFF
            row += len(batch)
            await self._keep()
        return parts, first, digest

    async def _batches(self) -> AsyncGenerator[DeltaBatch]:
        info = self.map.info
        rows = rows_per_message(
            self.name, info.key_size, info.value_size, self.snapshots.max_payload
        )
        async for keys, values in self._chunks():
            for at in range(0, len(keys), rows):
                some = self.follower.identity.keys(keys[at : at + rows])
                yield DeltaBatch.of_entries(Op.UPDATE, some, values[at : at + rows], 0)

    async def _chunks(self) -> AsyncGenerator[tuple[U8, U8]]:
        """A scan beside the probes; where changes are seen by sweeps only, a sweep itself.

        What a sweep found goes out as own changes, so nothing can be in such a snapshot, and
        changed back before the next sweep, that the log never tells.
        """
        loop = asyncio.get_running_loop()
        swept: asyncio.Future[list[tuple[U8, U8]]] = loop.create_future()

        def take(chunks: list[tuple[U8, U8]]) -> None:
            loop.call_soon_threadsafe(_resolve, swept, chunks)

        if self.publishes and self.scans.share_sweep(self.name, take):
            await asyncio.wait({swept}, timeout=SWEEP_SECONDS_MAX)
            if not swept.done():
                raise SnapshotRefusedError(f"map {self.name}: no snapshot, the sweeps stand still")
            for chunk in swept.result():
                yield chunk
            return
        chunks = self.map.scan()
        while (found := await asyncio.to_thread(next, chunks, None)) is not None:
            yield found


def _resolve(future: asyncio.Future[list[tuple[U8, U8]]], chunks: list[tuple[U8, U8]]) -> None:
    if not future.done():
        future.set_result(chunks)
