"""One node: the production judge between a simulated kernel and the log, in steps.

What the owner of a ``Replica`` has to do, this one does as ``bridge.node`` and ``bridge.apply`` do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bridge.core.fingerprints import Fingerprints
from bridge.core.policies import PolicyFold
from bridge.core.replica import Replica, Verdict
from bridge.model import ConflictPolicy, DeltaBatch, Op, Origin
from tests.simulation.kernel import ABSENT, Kernel, change, entries
from tests.simulation.log import Log
from tests.simulation.publisher import Publisher

KEYS = 3


@dataclass(slots=True)
class Scan:
    began: int
    unread: list[int]
    complete: bool
    found: dict[int, int] = field(default_factory=dict)
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
    publishes_only: bool = False
    policy: ConflictPolicy = ConflictPolicy.STREAM
    applies_only: bool = False
    up: bool = False
    connected: bool = True
    stale: int = 0
    replica: Replica = field(init=False)
    publisher: Publisher = field(init=False)
    settled: bool = False
    read: int = 0
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
        self.publisher = Publisher(self.replica.origin, self.log.last(self.name))
        self.read, self.applied, self.landing = 0, 0, None
        self.scan, self.rereading, self.joined = None, [], False
        self.settled, self.scan_wanted = False, not self.one_way
        known = self.saved is not None and self.saved[0] == self.log.generation
        self.rejoining = self.saved is not None and known and self.saved[1] <= len(self.log)
        if self.saved is not None and self.rejoining:
            self.replica.rejoin(self.saved[1])
        self.lost_seen, self.writes_seen = self.kernel.lost, -1
        self.kernel.attach(now)
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
        watermark = self.kernel.oldest(now) - 1
        self.replica.drained(watermark)
        self.replica.forget(watermark)
        return count > 0

    def _capture(self, batch: DeltaBatch) -> None:
        self.replica.capture(batch)
        self.publisher.queue.append(batch)
        lasting = batch.take(batch.ops != Op.EVICT)
        self.stale += sum(one not in self.kernel.wrote for one in entries(lasting))

    def judge(self, messages: int, now: int) -> bool:
        """The hand-over to the writer thread."""
        ready = self.settled and self.connected and not self.publishes_only
        if not ready or self.landing is not None or self.read == len(self.log):
            return False
        end = min(self.read + messages, len(self.log))
        deltas = self.log.messages[self.read : end]
        dirty = self.replica.dirty_keys
        verdict = self.replica.judge(deltas, range(self.read + 1, end + 1))
        self.read = end
        self._begin(verdict, now)
        self._settles(self.replica.dirty_keys < dirty)
        return True

    def _settles(self, settles: bool) -> None:
        if self.landing is not None:
            self.landing.settles = settles

    def rejoin(self, now: int) -> bool:
        """All of the stream has been judged: the map takes what it missed."""
        ready = self.rejoining and self.settled and self.connected and self.landing is None
        if not ready or self.read < len(self.log):
            return False
        self.rejoining = False
        self._begin(self.replica.rejoined(), now)
        return True

    def retry(self, now: int) -> bool:
        """There is room again for what was refused."""
        if self.landing is not None or self.kernel.full or not self.replica.unwritten_rows:
            return False
        self._begin(self.replica.retry(1), now)
        return True

    def save(self) -> bool:
        """Write the position to disk. In between, what is there may be old."""
        position = (self.log.generation, self.position())
        unfit = self.rejoining or not self.joined or self.replica.unwritten_rows > 0
        if self.publishes_only or unfit or self.saved == position:
            return False
        self.saved = position
        return True

    def position(self) -> int:
        return self.applied

    def _begin(self, verdict: Verdict, now: int) -> None:
        if verdict.writes is None:
            self.applied = self.read
            return
        rows = list(range(len(verdict.writes)))
        self.landing = Landing(verdict, now, rows, end=self.read)

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
        self.applied, self.landing = landing.end, None
        return True

    def landed_at(self, landing: Landing, now: int) -> int:
        del landing
        return now

    def sweep(self, now: int, *, quiet: bool) -> bool:
        """A whole reading: at the start, after a loss, or again and again: one key at a time."""
        if self.one_way or not self.settled or self.rejoining:
            return False
        self.joined |= self.read == len(self.log) and self.landing is None
        self.scan_wanted |= self.lost_more()
        if self.scan is None:
            return self._begin_scan(now, quiet=quiet)
        if self.scan.unread:
            key = self.scan.unread.pop()
            if key in self.kernel.map:
                self.scan.found[key] = self.kernel.map[key]
            self.scan.ended = now
            return True
        self._compare(self.scan)
        self.scan = None
        return True

    def lost_more(self) -> bool:
        return self.kernel.lost != self.lost_seen

    def _begin_scan(self, now: int, *, quiet: bool) -> bool:
        again = not self.kernel.records and (
            not quiet or self.kernel.writes != self.writes_seen or self.landing is not None
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
        keys = np.array(list(scan.found), np.uint8).reshape(-1, 1)
        values = np.array(list(scan.found.values()), np.uint64).view(np.uint8).reshape(-1, 8)
        found = self.replica.compare(keys, values, complete=scan.complete)
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
