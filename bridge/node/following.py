"""Reading the stream for one map: joins it, loads snapshots, follows it, mends holes.

Belongs to the event loop's thread, but for ``caught_up`` and ``level``, which others may ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

from bridge.apply.inbox import Arrival, Inbox
from bridge.apply.loading import Load
from bridge.apply.target import ApplyTarget
from bridge.bus.connection import end_task
from bridge.bus.protocol import Broken, Bus, Gap, Item, Received, Subscription
from bridge.bus.publish_loop import Acked, PublishLoop
from bridge.bus.snapshots import SnapshotBrokenError, Snapshots, SnapshotStoreError
from bridge.core.identity import Identity
from bridge.core.joining import Acks, Plan, plan_gap, plan_start, rejoins
from bridge.core.snapshots import Log
from bridge.errors import BridgeError
from bridge.kernel.maps import KernelMap
from bridge.model import Anchor, Delta, Manifest, Position
from bridge.node.choosing import Chooser, log_of
from bridge.node.halts import until_open
from bridge.node.loading import Loading
from bridge.node.positions import Positions
from bridge.node.report import Report
from bridge.node.resuming import resume

RETRY_SECONDS = 0.5
POLL_SECONDS = 0.02
EARLY_BYTES_MAX = 24 << 20
EARLY_OVERHEAD = 2048  # bytes of memory that a message takes beside its columns


@dataclass(slots=True)
class StreamCounters:
    """What was read of the stream for one map; the numbers only grow."""

    received: int = 0
    broken: int = 0
    gaps: int = 0  # holes met: messages that the log had forgotten before they were read
    unmended: int = 0  # of these, and of holes at the start: no snapshot covered them
    loads: int = 0  # snapshots loaded
    load_failures: int = 0


@dataclass(slots=True)
class Joined:
    """How the last joining went."""

    way: str = ""
    position: int = 0  # of the snapshot, 0: none
    entries: int = 0
    tail_changes: int = 0  # of others, read behind the snapshot by then
    began: float = 0.0
    load_seconds: float = 0.0  # until the snapshot was written
    seconds: float = 0.0  # until all of it was written and the stream read to what was its end


@dataclass(slots=True)
class Follower:
    """``prepare``, then ``run`` as a task; it ends when cancelled, or when going on is in vain."""

    name: str
    cluster: str
    publishes: bool
    bus: Bus
    snapshots: Snapshots
    inbox: Inbox
    report: Report
    positions: Positions
    map: KernelMap
    target: ApplyTarget
    identity: Identity
    layout: int  # of the map; 0: not known
    learn: Callable[[int], Awaitable[None]]  # a sender's layout, before its changes are handed on
    loads: bool = True  # snapshots; a conflict policy needs the log itself
    publishing: PublishLoop | None = None
    counters: StreamCounters = field(default_factory=StreamCounters)
    joined: Joined = field(default_factory=Joined)
    log: str = ""
    following: bool = False  # all of what was the log's end has been written
    _subscription: Subscription | None = None
    # While a snapshot is written, what follows it is read and decoded already.
    _ahead: Subscription | None = None
    _early: deque[Item] = field(default_factory=deque)
    _bytes_before: int = 0
    _changes_before: int = 0
    _handed: int = 0
    _newest: Anchor | None = None  # the last message handed on
    _anchor: Anchor | None = None  # the last one that was written
    _head: int = 0
    _saved: int | None = None
    _known: bool = False
    _acks: Acks = field(default_factory=Acks)

    async def prepare(self) -> None:
        """Find out whether this very map was bridged before, and how far it had come."""
        map_id = self.map.info.id
        state, self._saved = await resume(
            self.bus, self.cluster, self.positions, self.name, map_id, self.report
        )
        self.log, self._head = state.id, state.last
        self._known = self.positions.knows(self.name, map_id)
        if rejoins(self._saved, log_of(state), publishes=self.publishes):
            assert self._saved is not None
            self.target.replica.rejoin(self._saved)
            self.target.rejoining = True
            self.report.say(
                "the map lived on: it takes what others changed, and publishes what changed here",
                map=self.name,
                position=self._saved,
            )

    async def run(self) -> None:
        after = await self._join(self._plan_start)
        self._known = True
        while True:
            gap = await self._follow(after)
            if gap is None:
                return
            self.following = False
            self.report.warn(
                "messages expired before they were read: a snapshot is loaded",
                map=self.name,
                first=gap.first_missing,
                last=gap.last_missing,
            )
            after = await self._join(lambda gap=gap: self._plan_gap(gap))  # type: ignore[misc]

    def acked(self, acked: Acked) -> None:
        """An own message was stored."""
        self._acks.note(acked.last_sequence, acked.sequence, self.target.replica.observed)

    def level(self) -> bool:
        """Whether nothing of the stream waits to be read or written."""
        subscription = self._subscription
        if subscription is None:
            return False
        # In this order: a message that is just being handed over has left ``pending`` already.
        nothing_pending = subscription.pending == 0 and not self._early
        return nothing_pending and self.target.counters.sequence >= self._handed

    def caught_up(self) -> bool:
        """Whether what was the log's end when this map joined has been written."""
        if self.following:
            return True
        subscription, target = self._subscription, self.target
        if subscription is None:
            return False
        if target.counters.sequence < self._head and not self.level():
            return False
        if target.rejoining:
            if not target.caught_up:
                target.caught_up = True
                self.inbox.wake()
            return False
        self.joined.tail_changes = target.counters.changes - self._changes_before
        self.joined.seconds = time.monotonic() - self.joined.began
        self.following = True
        return True

    def save_position(self) -> None:
        """Note how far the map has come, and the newest message that this rests on."""
        position, newest = self.position(), self._newest
        if newest is not None and newest.sequence <= position:
            self._anchor = newest
        if position:
            self.positions.note(self.name, self.map.info.id, self.log, position, self._anchor)

    def position(self) -> int:
        """Everything of this map up to here in the log has been written to it."""
        subscription = self._subscription
        read = subscription.read_up_to if subscription is not None else 0
        written = self.target.counters.sequence
        return max(read, written) if self.level() else written

    @property
    def trouble(self) -> str:
        """Why the stream cannot be read now, empty while it can."""
        subscription = self._subscription
        return "" if subscription is None else subscription.trouble

    @property
    def bytes_read(self) -> int:
        """Bytes of this map's messages so far."""
        now = 0 if self._subscription is None else self._subscription.counters.bytes
        return self._bytes_before + now

    async def close(self) -> None:
        await self._close_ahead()
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            await subscription.close()

    async def _close_ahead(self) -> None:
        ahead, self._ahead = self._ahead, None
        self._early.clear()
        if ahead is not None:
            await ahead.close()

    async def _join(self, plan_now: Callable[[], Awaitable[Plan]]) -> int:
        """Load what has to be loaded; where reading goes on."""
        self.joined = Joined(began=time.monotonic())
        self._changes_before = self.target.counters.changes
        while True:
            plan = await plan_now()
            self.joined.way = str(plan.way.value)
            try:
                if plan.snapshot is not None:
                    await self._load(plan, plan.snapshot)
            except (SnapshotBrokenError, SnapshotStoreError) as error:
                await self._close_ahead()
                self.counters.load_failures += 1
                self.report.warn_once(f"a snapshot could not be loaded: {error}", map=self.name)
                await asyncio.sleep(RETRY_SECONDS)
                continue
            self._handed = plan.after
            return plan.after

    async def _plan_start(self) -> Plan:
        def plan(log: Log, snapshot: Manifest | None) -> Plan:
            return plan_start(
                self._saved, log, snapshot, publishes=self.publishes, known=self._known
            )

        return await self._plan(plan, 0)

    async def _plan_gap(self, gap: Gap) -> Plan:
        def plan(log: Log, snapshot: Manifest | None) -> Plan:
            return plan_gap(log, snapshot, gap.last_missing)

        return await self._plan(plan, gap.last_missing)

    async def _plan(self, make: Callable[[Log, Manifest | None], Plan], behind: int) -> Plan:
        chooser = Chooser(
            self.name,
            self.cluster,
            self.bus,
            self.snapshots,
            self.report,
            self.map.info,
            self.layout,
            self.loads,
        )
        choice = await chooser.choose(make, behind)
        self._head = choice.head
        self.counters.unmended += choice.unmended
        return choice.plan

    async def _load(self, plan: Plan, manifest: Manifest) -> None:
        await self._resolve()
        stored = self._acks.stored_by(plan.after)
        loading = Loading(plan, manifest, self.snapshots, self.map, self.identity, hand=self._hand)
        self._ahead = self._subscribe(plan.after)
        reading = asyncio.create_task(self._read_ahead(self._ahead))
        try:
            await loading.run(stored=stored, guarded=self._known)
        finally:
            await end_task(reading)
        self.counters.loads += 1
        self.joined.load_seconds = time.monotonic() - self.joined.began
        self.joined.position, self.joined.entries = manifest.position, manifest.rows

    async def _read_ahead(self, subscription: Subscription) -> None:
        """Within bounds: what is not taken here is taken later."""
        size = 0
        with contextlib.suppress(BridgeError):  # whoever reads on meets it again
            async for item in subscription:
                self._early.append(item)
                size += (
                    item.delta.batch.nbytes + EARLY_OVERHEAD if isinstance(item, Received) else 0
                )
                if size > EARLY_BYTES_MAX or not isinstance(item, Received):
                    return

    async def _resolve(self) -> None:
        """Wait until the fate of every own message that was sent is known."""
        publishing = self.publishing
        if publishing is None:
            return
        upto = publishing.sent
        while publishing.stored < upto:  # noqa: ASYNC110 - the publishing task moves it
            await asyncio.sleep(POLL_SECONDS)

    async def _hand(self, sequence: int, delta: Delta, load: Load | None = None) -> None:
        await until_open(self.target)
        await self.inbox.put(Arrival(sequence, delta, load))

    def _subscribe(self, after: int) -> Subscription:
        return self.bus.subscribe(self.cluster, [self.name], Position(after), log_id=self.log)

    async def _follow(self, after: int) -> Gap | None:
        """Hand on what comes; the hole that was met, ``None`` at the end."""
        subscription, self._ahead = self._ahead or self._subscribe(after), None
        self._subscription = subscription
        async for item in _chained(self._early, subscription):
            match item:
                case Received():
                    self.counters.received += 1
                    await self.learn(item.delta.layout)
                    self._handed = item.sequence
                    self._newest = Anchor(item.sequence, item.stored_at_ns)
                    await self._hand(item.sequence, item.delta)
                case Broken():
                    self.counters.broken += 1
                    self.report.warn_once(
                        "message skipped", subject=item.subject, reason=item.reason
                    )
                case Gap():
                    self.counters.gaps += 1
                    self._bytes_before = self.bytes_read
                    self._subscription = None
                    await subscription.close()
                    return item
        return None


async def _chained(early: deque[Item], subscription: Subscription) -> AsyncIterator[Item]:
    while early:
        yield early.popleft()
    async for item in subscription:
        yield item
