"""One node: the production judge between a simulated kernel and the log, in steps."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bridge.core.fingerprints import Fingerprints
from bridge.core.replica import Replica, Verdict
from bridge.model import Cause, Delta, DeltaBatch, Origin
from tests.simulation.kernel import ABSENT, Kernel, change, entries, store

KEYS = 3


@dataclass(slots=True)
class Scan:
    began: int
    unread: list[int]
    found: dict[int, int] = field(default_factory=dict)
    ended: int = 0


@dataclass(slots=True)
class Message:
    delta: Delta
    number: int


@dataclass(slots=True)
class Node:
    """``publishes_only``: nothing of the stream is written here, dirty keys are read again."""

    name: str
    kernel: Kernel
    publishes_only: bool = False
    connected: bool = True
    incarnation: int = 0
    stale: int = 0
    replica: Replica = field(init=False)
    settled: bool = False
    queue: list[DeltaBatch] = field(default_factory=list)
    sent: int = 0
    sending: Message | None = None
    read: int = 0
    verdict: Verdict | None = None
    landing: list[tuple[int, int]] = field(default_factory=list)
    scan: Scan | None = None
    scan_wanted: bool = False
    lost_seen: int = 0
    rereading: list[tuple[int, int, int]] = field(default_factory=list)
    applied: int = 0  # messages whose writes are finished
    saved: int | None = None  # on disk; outlives the bridge, but not the map
    rejoining: bool = False
    doubtful_crashes: int = 0  # with a key in doubt, a mark that dies with the bridge

    def start(self, now: int, incarnation: int) -> None:
        """A new process of the bridge; the kernel's map may be old."""
        self.incarnation = incarnation
        self.replica = Replica(
            Origin("c", "m", self.name, incarnation),
            publishes=True,
            applies=not self.publishes_only,
            fingerprints=None if self.publishes_only else Fingerprints(1),
            rereads=self.publishes_only,
        )
        self.queue, self.sent, self.sending = [], 0, None
        self.read, self.verdict, self.landing = 0, None, []
        self.scan, self.rereading = None, []
        self.settled, self.scan_wanted = False, not self.publishes_only
        self.applied = 0
        self.rejoining = self.saved is not None
        if self.saved is not None:
            self.replica.rejoin(self.saved)
        self.lost_seen = self.kernel.lost
        self.kernel.attach(now)
        self.replica.attached()
        self.replica.drained(now - 1)

    def settle(self, now: int) -> bool:
        """Rule of the start: operations older than the probes have to end first."""
        attached = self.kernel.attached_at
        if self.settled or any(
            o is not None and attached is not None and o.began < attached
            for o in self.kernel.running
        ):
            return False
        self.replica.settled(now)
        self.settled = True
        return True

    def drain(self, now: int) -> bool:
        did = bool(self.kernel.ring)
        if did:
            rows = [self.kernel.ring.popleft() for _ in range(min(len(self.kernel.ring), 3))]
            self._capture(DeltaBatch.concatenate(rows))
        watermark = self.kernel.oldest(now) - 1
        self.replica.drained(watermark)
        self.replica.forget(watermark)
        return did

    def _capture(self, batch: DeltaBatch) -> None:
        self.replica.capture(batch)
        self.queue.append(batch)
        self.stale += sum(one not in self.kernel.wrote for one in entries(batch))

    def judge(self, log: list[Delta], messages: int) -> bool:
        """The hand-over to the writer thread."""
        ready = self.settled and self.connected and not self.publishes_only
        if not ready or self.verdict is not None or self.read == len(log):
            return False
        end = min(self.read + messages, len(log))
        verdict = self.replica.judge(log[self.read : end], range(self.read + 1, end + 1))
        self.read = end
        self._begin(verdict)
        return True

    def rejoin(self, log: list[Delta]) -> bool:
        """All of the stream has been judged: the map takes what it missed."""
        if not self.rejoining or not self.settled or self.read < len(log):
            return False
        self.rejoining = False
        self._begin(self.replica.rejoined())
        return True

    def save(self) -> bool:
        """Write the position to disk. In between, what is there may be old."""
        if self.publishes_only or self.rejoining or self.saved == self.applied:
            return False
        self.saved = self.applied
        return True

    def _begin(self, verdict: Verdict) -> None:
        if verdict.writes is not None:
            self.verdict, self.landing = verdict, entries(verdict.writes)
        else:
            self.applied = self.read

    def land(self, now: int) -> bool:
        if self.verdict is None:
            return False
        if self.landing:
            store(self.kernel.map, *self.landing.pop())
            return True
        assert self.verdict.touch is not None
        self.verdict.touch.end = now
        self.verdict = None
        self.applied = self.read
        return True

    def sweep(self, now: int, log: list[Delta]) -> bool:
        """Repair after a loss, and the scan at the start: one key at a time, then the wait."""
        if self.publishes_only or not self.settled or self.rejoining:
            return False
        self.scan_wanted |= self.kernel.lost != self.lost_seen
        if self.scan is None:
            if not self.scan_wanted or self.read < len(log):
                return False
            self.scan_wanted, self.lost_seen = False, self.kernel.lost
            self.replica.begin_scan(now)
            self.scan = Scan(now, list(range(KEYS)))
        elif self.scan.unread:
            key = self.scan.unread.pop()
            if key in self.kernel.map:
                self.scan.found[key] = self.kernel.map[key]
            self.scan.ended = now
        elif self.kernel.oldest(now) > self.scan.ended:
            self._compare(self.scan)
            self.scan = None
        else:
            return False
        return True

    def _compare(self, scan: Scan) -> None:
        keys = np.array(list(scan.found), np.uint8).reshape(-1, 1)
        values = np.array(list(scan.found.values()), np.uint32).view(np.uint8).reshape(-1, 4)
        found = self.replica.compare(keys, values, complete=True)
        self.scan_wanted |= found.deferred > 0
        for key in found.deleted_keys[:, 0]:
            self._capture(change(int(key), ABSENT, scan.began, scan.ended, Cause.CHANGE))
        for key, value in zip(found.updated_keys[:, 0], found.updated_values, strict=True):
            number = int(np.ascontiguousarray(value).view(np.uint32)[0])
            self._capture(change(int(key), number, scan.began, scan.ended, Cause.CHANGE))

    def reread(self, now: int) -> bool:
        if self.rereading:
            key, value, began = self.rereading.pop()
            self._capture(change(key, value, began, now, Cause.CHANGE))
            return True
        keys = self.replica.reread(8)
        if keys is None:
            return False
        self.rereading = [(int(k), self.kernel.map.get(int(k), ABSENT), now) for k in keys[:, 0]]
        return True
