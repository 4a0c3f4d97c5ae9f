"""One node: the production judge between a simulated kernel and the log, in steps.

What the owner of a ``Replica`` has to do, this one does as ``bridge.node`` and ``bridge.apply`` do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from bridge.apply.gate import ApplyGate
from bridge.apply.inbox import Arrival
from bridge.bus.snapshots import Snapshots
from bridge.core.coalesce import coalesce
from bridge.core.fingerprints import Fingerprints
from bridge.core.guard import GuardLimits
from bridge.core.joining import Acks, rejoins
from bridge.core.policies import PolicyFold
from bridge.core.replica import Replica
from bridge.core.scanrows import ScanChunk
from bridge.core.snapshots import Facts
from bridge.core.verdict import Verdict
from bridge.model import U8, ConflictPolicy, Delta, DeltaBatch, Manifest, Op, Origin
from bridge.node.synced import Sync, SyncGate
from tests.core_kit import end_scan
from tests.simulation.joining import Joining, keys_of, now_done
from tests.simulation.kernel import ABSENT, Kernel, change, entries
from tests.simulation.log import Log
from tests.simulation.publisher import Publisher
from tests.simulation.taking import Taker

KEYS = 3
NO_GUARD = GuardLimits()


@dataclass(slots=True)
class Scan:
    began: int
    unread: list[int]
    complete: bool
    found: dict[int, int] = field(default_factory=dict)
    sifted: list[ScanChunk] = field(default_factory=list)
    ended: int = 0


@dataclass(slots=True)
class Landing:
    verdict: Verdict
    began: int
    rows: list[int]
    refused: list[int] = field(default_factory=list)
    end: int = 0  # position that is applied when it is done
    settles: bool = False  # keys that were in doubt


@dataclass(slots=True)
class Node:
    """``publishes_only``: nothing of the stream is written here, dirty keys are read again."""

    name: str
    kernel: Kernel
    log: Log
    snapshots: Snapshots
    seconds: Callable[[], float]  # a steady clock
    publishes_only: bool = False
    policy: ConflictPolicy = ConflictPolicy.STREAM
    applies_only: bool = False
    limits: GuardLimits = NO_GUARD
    halted: str = ""  # on disk
    bridged: bool = False  # on disk: this very map was bridged before
    up: bool = False
    connected: bool = True
    stale: int = 0
    replica: Replica = field(init=False)
    publisher: Publisher = field(init=False)
    settled: bool = False
    joining: Joining | None = None
    taker: Taker = field(init=False)
    gate: ApplyGate = field(init=False)
    sync_gate: SyncGate = field(init=False)
    acks: Acks = field(default_factory=Acks)
    read: int = 0
    verified: int = 0  # all of it was there to be read
    following: bool = False  # what was the log's end has been written
    scanned: bool = False  # once, as a whole
    drained_to: int = 0  # what ended until then has come out of the ring
    watermark: int = 0  # own changes that began at or before it have been captured
    merged: int = 0  # changes that a newer one replaced before they were sent
    messages_read: int = 0
    newest: float = 0.0  # when the newest change that is written was stored
    landing: Landing | None = None
    scan: Scan | None = None
    scan_wanted: bool = False
    lost_seen: int = 0
    writes_seen: int = -1
    rereading: list[tuple[int, int, int]] = field(default_factory=list)
    applied: int = 0  # messages whose writes are finished
    saved: tuple[int, int] | None = None  # on disk, with the log's id; outlives the bridge
    rejoining: bool = False
    joined: bool = False  # everything that the log held was applied once
    unasked: int = 0  # messages judged although an operator had to be asked first
    asks: bool = False  # what is told to the operator, and outlives the bridge
    fenced: bool = False  # another instance bears its name
    doubtful_crashes: int = 0  # with a key in doubt, a mark that dies with the bridge

    def start(self, now: int, incarnation: int) -> bool:
        """A new process of the bridge; the kernel's map may be old."""
        if self.up:
            return False
        self.up = True
        self.replica = Replica(
            Origin("c", "m", self.name, incarnation),
            publishes=not self.applies_only,
            applies=not self.publishes_only,
            fingerprints=None if self.one_way else Fingerprints(1),
            rereads=self.publishes_only,
            folding=folding_of(self.policy),
        )
        self.publisher = Publisher(self.replica.origin, self.log.last(self.name), self._acked)
        self.read, self.verified, self.applied, self.landing = 0, 0, 0, None
        self.scan, self.rereading, self.joined = None, [], False
        self.settled, self.scan_wanted = False, not self.one_way
        self.following, self.scanned, self.merged, self.messages_read = False, False, 0, 0
        self.acks, self.taker, self.sync_gate = Acks(), Taker(self, incarnation), SyncGate()
        self.gate = ApplyGate(
            self.replica.origin,
            self.limits,
            count=lambda: len(self.kernel.map),
            on_halt=self._halt,
            halted=self.halted,
            clock=self.seconds,
        )
        saved = self.saved_position()
        self.rejoining = rejoins(saved, self.log.view(), publishes=not self.one_way)
        if saved is not None and self.rejoining:
            self.replica.rejoin(saved)
        self.joining = Joining(self)
        self.lost_seen, self.writes_seen = self.kernel.lost, -1
        self.kernel.attach(now)
        self.watermark, self.drained_to = now - 1, now - 1
        self.replica.attached()
        self.replica.drained(now - 1)
        return True

    @property
    def one_way(self) -> bool:
        return self.publishes_only or self.applies_only

    def crash(self) -> None:
        self.up = False
        self.kernel.attached_at = None
        settling = self.landing is not None and self.landing.settles
        self.doubtful_crashes += settling or self.replica.dirty_keys > 0

    def saved_position(self) -> int | None:
        """What had been applied to this map, when the log is the one that it counts in."""
        saved, log = self.saved, self.log
        known = saved is not None and saved[0] == log.generation and saved[1] <= len(log)
        return saved[1] if saved is not None and known else None

    @property
    def loads(self) -> bool:
        """A policy folds the log from its beginning."""
        return self.policy is ConflictPolicy.STREAM and not self.one_way and not self.kernel.lru

    @property
    def keys(self) -> int:
        return KEYS

    def keys_now(self) -> U8:
        return keys_of(self.kernel.map)

    def manifests(self) -> list[Manifest]:
        return now_done(self.snapshots.manifests("m"))

    def facts(self) -> Facts:
        mending = self.scan_wanted or (self.scan is not None and self.kernel.records)
        return Facts(
            settled=self.joined and self.following and self.scanned,
            losses=self.kernel.lost,
            repairing=mending or self.lost_more(),
            replaced=self.merged,
            unwritten=self.replica.unwritten_rows,
            watermark=self.watermark,
            captured=self.replica.captured,
            stored=self.publisher.stored_rows,
        )

    def _halt(self, reason: str) -> None:
        self.asks = True
        self.keep_halted(reason)

    def keep_halted(self, reason: str) -> None:
        self.halted = reason

    def _acked(self, own: int, at: int) -> None:
        self.acks.note(own, at, self.replica.observed)

    def join(self, now: int) -> bool:
        return self.joining is not None and self.joining.step(now)

    def follow(self, after: int) -> None:
        """The log is read from here on."""
        self.read = self.verified = self.applied = after
        self.joining = None

    def notice(self) -> bool:
        """The log's beginning is looked at now and then: it may have passed what was read."""
        if self.joining is not None or not self.connected or self.publishes_only:
            return False
        if self.log.first > self.verified + 1:
            self.joining, self.following = Joining(self, self.log.first - 1), False
            return True
        caught_up = self.read == len(self.log) and self.verified != self.read
        self.verified = self.read if caught_up else self.verified
        return False

    def merge(self) -> bool:
        """What waits for a broker that takes nothing becomes one change per key."""
        queue = self.publisher.queue
        rows = self.publisher.waiting
        if self.connected or rows < 2:
            return False
        merged = coalesce(queue)
        self.merged += rows - len(merged)
        self.publisher.queue = [merged]
        self.replica.replaced(self.publisher.sent + 1, merged)
        return rows > len(merged)

    def resume(self) -> bool:
        """An operator has looked, and lets everything pass that is in the log by now."""
        if not self.gate.halted or self.landing is not None:
            return False
        self.halted, self.asks = "", False
        self.gate.resume(len(self.log))
        return True

    def release(self, now: int) -> bool:
        if self.landing is not None or not self.settled:
            return False
        held = self.gate.released()
        if not held or self.joining is not None:
            return bool(held)
        self._judge([a.delta for a in held], [a.sequence for a in held], now)
        return True

    def level(self) -> bool:
        """Nothing of the log waits to be read or written."""
        waits = self.joining is not None or self.landing is not None or self.gate.held
        return not waits and self.read == len(self.log)

    def sync(self) -> Sync:
        """What the node says of itself."""
        ready = self.joined and self.following and self.connected and not self.gate.halted
        return self.sync_gate.look(
            self.seconds(),
            ready=ready,
            level=self.level(),
            newest=self.newest,
        )

    def settle(self, now: int) -> bool:
        """Rule of the start: operations older than the probes have to end first."""
        if self.settled or self.older_go_on():
            return False
        self.replica.settled(now)
        self.settled = True
        return True

    def older_go_on(self) -> bool:
        attached, running = self.kernel.attached_at, self.kernel.running
        assert attached is not None
        return any(o is not None and o.began < attached for o in running)

    def drain(self, now: int) -> bool:
        count = min(len(self.kernel.ring), 3)
        if count:
            rows = [self.kernel.ring.popleft() for _ in range(count)]
            self._capture(DeltaBatch.concatenate(rows))
            self.drained_to = max(self.drained_to, int(rows[-1].left[0]))
        else:
            self.drained_to = now
        self.watermark = self.kernel.oldest(now) - 1
        self.replica.drained(self.watermark)
        self.replica.forget(self.watermark)
        return count > 0

    def _capture(self, batch: DeltaBatch) -> None:
        self.replica.capture(batch)
        self.publisher.queue.append(batch)
        lasting = batch.take(batch.ops != Op.EVICT)
        self.stale += sum(one not in self.kernel.wrote for one in entries(lasting))

    def judge(self, messages: int, now: int) -> bool:
        """The hand-over to the writer thread."""
        ready = self.settled and self.connected and not self.publishes_only
        ready = ready and self.joining is None and self.landing is None and not self.gate.halted
        first = max(self.read, self.log.first - 1)  # what is gone is passed over without a word
        if not ready or first == len(self.log):
            return False
        end = min(first + messages, len(self.log))
        if first == self.verified and messages > 1:  # else others' messages lie in between
            self.verified = end
        self.read, self.messages_read = end, self.messages_read + end - first
        deltas, places = self.log.messages[first:end], range(first + 1, end + 1)
        arrivals = [Arrival(at, delta) for at, delta in zip(places, deltas, strict=True)]
        if self.gate.admits(arrivals):
            self._judge(deltas, list(places), now)
        return True

    def _judge(self, deltas: list[Delta], places: list[int], now: int) -> None:
        dirty = self.replica.dirty_keys
        self.unasked += self.asks
        verdict = self.replica.judge(deltas, places)
        self.begin_landing(verdict, now, places[-1])
        self._settles(self.replica.dirty_keys < dirty)

    def _settles(self, settles: bool) -> None:
        if self.landing is not None:
            self.landing.settles = settles

    def rejoin(self, now: int) -> bool:
        """All of the stream has been judged: the map takes what it missed."""
        ready = self.rejoining and self.settled and self.connected and self.landing is None
        if not ready or not self.level():
            return False
        self.rejoining = False
        self.begin_landing(self.replica.rejoined(), now, self.read)
        return True

    def retry(self, now: int) -> bool:
        """There is room again for what was refused."""
        if self.landing is not None or self.kernel.full or not self.replica.unwritten_rows:
            return False
        self.begin_landing(self.replica.retry(1), now, self.applied)
        return True

    def save(self) -> bool:
        """Write the position to disk. In between, what is there may be old."""
        position = (self.log.generation, self.position())
        unfit = self.rejoining or not self.following or self.replica.unwritten_rows > 0
        if self.publishes_only or unfit or self.saved == position:
            return False
        self.saved, self.bridged = position, True
        return True

    def position(self) -> int:
        """Everything up to here is written."""
        return max(self.verified, self.applied) if self.level() else self.applied

    def begin_landing(self, verdict: Verdict, now: int, end: int) -> None:
        if verdict.writes is None:
            self._finish(end)
            return
        rows = list(range(len(verdict.writes)))
        self.landing = Landing(verdict, now, rows, end=end)

    def land(self, now: int) -> bool:
        """One entry is written; then all are, and what was refused is told."""
        landing = self.landing
        if landing is None:
            return False
        writes = landing.verdict.writes
        assert writes is not None
        if landing.rows:
            row = landing.rows.pop()
            key, value = entries(writes.take(slice(row, row + 1)))[0]
            if not self.kernel.put(key, value):
                landing.refused.append(row)
            return True
        if landing.verdict.touch is not None:
            landing.verdict.touch.end = self.landed_at(landing, now)
        if landing.refused:
            self.replica.refuse(writes.take(np.array(landing.refused)), full=True)
        self.landing = None
        self._finish(landing.end)
        return True

    def _finish(self, end: int) -> None:
        self.applied = end
        if end:
            self.newest = self.log.times[end - 1]

    def landed_at(self, landing: Landing, now: int) -> int:
        del landing
        return now

    def sweep(self, now: int, *, quiet: bool) -> bool:
        """A whole reading: at the start, after a loss, or again and again: one key at a time."""
        if self.one_way or not self.settled or self.rejoining:
            return False
        if self.level():
            self.joined = self.following = self.gate.armed = True
        self.scan_wanted |= self.lost_more()
        if self.scan is None:
            return self._begin_scan(now, quiet=quiet)
        if self.scan.unread:
            key = self.scan.unread.pop()
            if key in self.kernel.map:
                value = self.scan.found[key] = self.kernel.map[key]
                read = change(key, value, now, now)
                self.scan.sifted.append(
                    self.replica.sift(self.replica.chunk(read.keys, read.values))
                )
            self.scan.ended = now
            return True
        if not self.drained_beyond(self.scan.ended):
            return False
        self._compare(self.scan)
        self.taker.share(self.scan.found)
        self.scan, self.scanned = None, True
        return True

    def drained_beyond(self, ended: int) -> bool:
        """Changes that the scan has seen came out of the ring, and are left out."""
        return self.drained_to >= ended

    def lost_more(self) -> bool:
        return self.kernel.lost != self.lost_seen

    def _begin_scan(self, now: int, *, quiet: bool) -> bool:
        again = not self.kernel.records and (
            not quiet
            or self.kernel.writes != self.writes_seen
            or self.landing is not None
            or self.taker.taking is not None
        )
        if not (self.scan_wanted or again) or not self.joined:
            return False
        self.scan_wanted, self.lost_seen = False, self.kernel.lost
        self.writes_seen = self.kernel.writes
        self.replica.begin_scan(now)
        self.scan = Scan(now, list(range(KEYS)), self.sees_deletes())
        return True

    def sees_deletes(self) -> bool:
        """Whether a key that the scan did not find was deleted, and not evicted."""
        return not self.kernel.lru

    def _compare(self, scan: Scan) -> None:
        found = end_scan(self.replica, scan.sifted, 8, complete=scan.complete)
        self.scan_wanted |= found.deferred > 0
        for key in found.deleted_keys[:, 0]:
            self._capture(change(int(key), ABSENT, scan.began, scan.ended))
        for key, value in zip(found.updated_keys[:, 0], found.updated_values, strict=True):
            number = int(np.ascontiguousarray(value).view(np.uint64)[0])
            self._capture(change(int(key), number, scan.began, scan.ended))

    def reread(self, now: int) -> bool:
        if self.rereading:
            key, value, began = self.rereading.pop()
            self._capture(change(key, value, began, now))
            return True
        keys = self.replica.reread(8)
        if keys is None:
            return False
        self.rereading = [(int(k), self.kernel.map.get(int(k), ABSENT), now) for k in keys[:, 0]]
        return True


def folding_of(policy: ConflictPolicy) -> PolicyFold | None:
    return None if policy is ConflictPolicy.STREAM else PolicyFold(policy, 1, 8)
