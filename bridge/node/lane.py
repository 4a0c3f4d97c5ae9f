"""What capture, scans and the writer thread of one map share: its judge, its lock, its outbox.

The lock makes capture and judgement atomic to each other, as ``bridge.core.replica`` demands. The
capture thread holds it for as long as it takes to note a batch, the writer thread for a judgement.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

from bridge.bus.outbox import Outbox
from bridge.core.coalesce import coalesce
from bridge.core.fingerprints import Differences
from bridge.core.identity import Identity
from bridge.core.replica import Replica
from bridge.core.scanrows import ScanChunk, ScanSlice
from bridge.core.touches import GRACE_NANOSECONDS
from bridge.model import U8, Cause, DeltaBatch

PLAIN = Identity()
STALLED_SECONDS = 2.0  # without the broker taking anything, until waiting changes are merged


@dataclass(slots=True)
class CaptureCounters:
    """Own changes of one map; every number only grows."""

    changes: int = 0
    scanned: int = 0  # of these, found by the scan at the start
    repaired: int = 0  # of these, found by a scan after a loss
    merges: int = 0  # times that waiting changes were merged key by key
    refused: int = 0  # times the outbox was full and the changes stayed where they were


class Lane:
    """One map's way out. Implements ``bridge.capture.scan.Comparison``."""

    def __init__(
        self,
        replica: Replica,
        outbox: Outbox | None,
        identity: Identity = PLAIN,
        *,
        dry: bool = False,
    ) -> None:
        self.lock = threading.Lock()
        self.replica = replica
        self.outbox = outbox
        self.identity = identity
        self._dry = dry  # nothing goes out, so nothing is to be waited for
        self.counters = CaptureCounters()
        self._drained = 0
        if outbox is not None:
            replica.drained(0)

    def sink(self, batch: DeltaBatch) -> bool:
        """Take captured changes; ``False`` leaves them with the caller, who tries again."""
        assert self.outbox is not None, "a map that is not published has no capture"
        batch = self.identity.batch(batch)
        with self.lock:
            if self._dry:
                self._count(batch)
                return True
            if not self.outbox.put(batch) and not (self._merge() and self.outbox.put(batch)):
                self.counters.refused += 1
                return False
            self.replica.capture(batch)
            if batch.cause == Cause.CHANGE and len(batch):
                # What is still in the ring, or was refused, is younger than what came out first.
                left, entered = int(batch.left[-1]), int(batch.entered[-1])
                self._advance(min(left - GRACE_NANOSECONDS, (entered or left) - 1))
        self._count(batch)
        return True

    def _count(self, batch: DeltaBatch) -> None:
        self.counters.changes += len(batch)
        if batch.cause == Cause.SCAN:
            self.counters.scanned += len(batch)
        elif batch.cause == Cause.REPAIR:
            self.counters.repaired += len(batch)

    def _merge(self) -> bool:
        """Merge what waits, when it does so because nobody takes it; whether that was done.

        While the broker takes changes a full outbox only makes the ring wait: history is kept.
        """
        assert self.outbox is not None
        if not self.outbox.stalled(STALLED_SECONDS):
            return False
        merged = self.outbox.merge(coalesce)
        if merged is None:
            return False
        self.counters.merges += 1
        self.replica.replaced(*merged)
        return True

    @property
    def watermark(self) -> int:
        """Own changes that began at or before this kernel time have been captured."""
        return self._drained

    def drained(self, now: int) -> None:
        """At ``now`` the source had nothing, and everything it had before has been taken."""
        with self.lock:
            self._advance(now - GRACE_NANOSECONDS)

    def _advance(self, watermark: int) -> None:
        """The bridge's writes are remembered until all changes that they may overlap are known.

        However long these wait for room in the outbox.
        """
        if watermark > self._drained:
            self._drained = watermark
            self.replica.drained(watermark)

    def recall(self, batch: DeltaBatch) -> None:
        with self.lock:
            self.replica.recall(batch)

    def attached(self) -> None:
        """The ring is about to be there; operations that are older may still be going on."""
        with self.lock:
            self.replica.attached()

    def settled(self, now: int) -> None:
        with self.lock:
            self.replica.settled(now)

    def reread(self, keys_max: int) -> U8 | None:
        if not self.replica.dirty_keys:
            return None
        with self.lock:
            return self.replica.reread(keys_max)

    def begin_scan(self, now: int) -> None:
        with self.lock:
            self.replica.begin_scan(now)

    def sift(self, keys: U8, values: U8) -> ScanChunk:
        if self.identity.prefixes:
            keys = self.identity.keys(keys)
        chunk = self.replica.scan.chunk(keys, values)
        with self.lock:
            return self.replica.scan.sift(chunk)

    def cut(self, chunks: list[ScanChunk], value_size: int) -> Iterator[ScanSlice]:
        return self.replica.scan.cut(chunks, value_size)

    def compare(self, piece: ScanSlice) -> Differences:
        with self.lock:
            complete = self.identity.missing_means_deleted
            return self.replica.scan.compare(piece, complete=complete)

    def end_scan(self) -> None:
        with self.lock:
            self.replica.scan.end()
