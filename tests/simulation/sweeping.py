"""How a node reads its whole map and compares it: what capture does with scans, in steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bridge.core.scanrows import ScanChunk
from tests.core_kit import end_scan
from tests.simulation.kernel import ABSENT, change

if TYPE_CHECKING:
    from tests.simulation.node import Node


@dataclass(slots=True)
class Scan:
    began: int
    unread: list[int]
    complete: bool
    found: dict[int, int] = field(default_factory=dict)
    sifted: list[ScanChunk] = field(default_factory=list)
    ended: int = 0


@dataclass(slots=True)
class Sweeper:
    """Belongs to one life of a node's bridge. ``wanted``: at the start, and after a loss."""

    node: Node
    wanted: bool
    lost_seen: int
    writes_seen: int = -1
    scan: Scan | None = None
    scanned: bool = False  # once, as a whole
    rereading: list[tuple[int, int, int]] = field(default_factory=list)

    @property
    def mends(self) -> bool:
        """Whether something was lost, and the map has not been compared since."""
        records = self.node.kernel.records
        return self.wanted or (self.scan is not None and records) or self.lost_more()

    def step(self, now: int, *, quiet: bool) -> bool:
        """One key at a time; then the comparison."""
        self.wanted |= self.lost_more()
        if self.scan is None:
            return self._begin(now, quiet=quiet)
        kernel, scan = self.node.kernel, self.node.replica.scan
        if self.scan.unread:
            key = self.scan.unread.pop()
            if key in kernel.map:
                value = self.scan.found[key] = kernel.map[key]
                read = change(key, value, now, now)
                self.scan.sifted.append(scan.sift(scan.chunk(read.keys, read.values)))
            self.scan.ended = now
            return True
        if not self.drained_beyond(self.scan.ended):
            return False
        self._compare(self.scan)
        self.node.taker.share(self.scan.found)
        self.scan, self.scanned = None, True
        return True

    def drained_beyond(self, ended: int) -> bool:
        """Changes that the scan has seen came out of the ring, and are left out."""
        return self.node.drained_to >= ended

    def lost_more(self) -> bool:
        return self.node.kernel.lost != self.lost_seen

    def _begin(self, now: int, *, quiet: bool) -> bool:
        node = self.node
        again = not node.kernel.records and (
            not quiet
            or node.kernel.writes != self.writes_seen
            or node.writer.busy
            or node.taker.taking is not None
        )
        if not (self.wanted or again) or not node.joined:
            return False
        self.wanted, self.lost_seen = False, node.kernel.lost
        self.writes_seen = node.kernel.writes
        node.replica.begin_scan(now)
        self.scan = Scan(now, list(range(node.keys)), self.sees_deletes())
        return True

    def sees_deletes(self) -> bool:
        """Whether a key that the scan did not find was deleted, and not evicted."""
        return not self.node.kernel.lru

    def _compare(self, scan: Scan) -> None:
        found = end_scan(self.node.replica, scan.sifted, 8, complete=scan.complete)
        self.wanted |= found.deferred > 0
        for key in found.deleted_keys[:, 0]:
            self.node.capture(change(int(key), ABSENT, scan.began, scan.ended))
        for key, value in zip(found.updated_keys[:, 0], found.updated_values, strict=True):
            number = int(np.ascontiguousarray(value).view(np.uint64)[0])
            self.node.capture(change(int(key), number, scan.began, scan.ended))

    def reread(self, now: int) -> bool:
        """Keys in doubt, where nothing is applied: read, and later captured."""
        node = self.node
        if self.rereading:
            key, value, began = self.rereading.pop()
            node.capture(change(key, value, began, now))
            return True
        keys = node.replica.reread(8)
        if keys is None:
            return False
        self.rereading = [(int(k), node.kernel.map.get(int(k), ABSENT), now) for k in keys[:, 0]]
        return True
