"""Which own changes are in doubt: nobody knows whether they or another write came last.

Invariant: an own change is in doubt when a write of the bridge to its key, another own change of it
or the attaching of the probes was not over when it began. It is the begin of a change that counts.
"""

from __future__ import annotations

import numpy as np

from bridge.core.dirty import DirtyKeys
from bridge.core.keys import KeySet
from bridge.core.overlaps import Overlaps
from bridge.core.touches import FOREVER, Touches
from bridge.model import U8, DeltaBatch, Flags


class Doubts:
    """Not thread-safe: the owner's lock makes it atomic with judgement and capture."""

    __slots__ = ("_drained", "_floor", "_overlaps", "dirty", "touches")

    def __init__(self) -> None:
        self.dirty = DirtyKeys()
        self.touches = Touches()
        self._overlaps = Overlaps()
        self._floor = 0
        self._drained = FOREVER

    def note(self, batch: DeltaBatch) -> None:
        """Own changes, in their order: which of their keys are in doubt from now on."""
        doubtful = self._of(batch)
        if doubtful is not None or self.dirty:
            self.dirty.mark(batch.keys, doubtful)

    def sure(self, batch: DeltaBatch, lasting: Flags | None) -> DeltaBatch:
        """Without evictions that the bridge may have written over: the map may hold the key.

        ``lasting``: which changes are no evictions; ``None``: all.
        """
        doubtful = None if lasting is None else self.touches.doubts(batch.keys, batch.entered)
        if lasting is None or doubtful is None:
            return batch
        return batch.take(lasting | ~doubtful)

    def since(self, began: int, blocked: U8 | None) -> KeySet | None:
        """Keys of which a scan that begins now says nothing, ``blocked`` ones included.

        They may have been written by the bridge since ``began``, or they are in doubt already.
        """
        if self.dirty:
            dirty = self.dirty.all()
            blocked = dirty if blocked is None else np.concatenate([blocked, dirty])
        return self.touches.since(began, blocked)

    def attached(self) -> None:
        """All own changes are in doubt until ``settled``."""
        self._floor = FOREVER

    def settled(self, now: int) -> None:
        """Every operation that is older than the probes had ended by ``now``."""
        self._floor = now

    def drained(self, watermark: int) -> None:
        """Own changes that began at or before ``watermark`` have been captured, all of them."""
        self._drained = watermark

    def forget(self, watermark: int) -> None:
        """No operation that began at or before ``watermark`` is still going on."""
        self.touches.forget(min(watermark, self._drained))

    def _of(self, batch: DeltaBatch) -> Flags | None:
        marks = [
            self.touches.doubts(batch.keys, batch.entered),
            self._overlaps.add(batch.keys, batch.entered, batch.left),
            batch.entered <= np.uint64(self._floor) if self._floor else None,
        ]
        found = [mark for mark in marks if mark is not None and mark.any()]
        return np.logical_or.reduce(found) if found else None
