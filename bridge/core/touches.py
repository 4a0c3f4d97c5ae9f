"""The bridge's own writes of the recent past: which keys, and until when they may have landed.

Invariant: as long as a record of an operation that began before time t can still arrive, every
write of the bridge that ended at or after t is listed. A local change is in doubt when a write of
the bridge to the same key had not ended before the change began: nobody can tell which came last.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.core.keys import KeySet
from bridge.model import U8, U64

FOREVER = 1 << 63
# Longer than an operation of a program takes from its begin until its record is in the ring,
# preemption and a stolen processor included.
GRACE_NANOSECONDS = 2_000_000_000


@dataclass(slots=True)
class Touch:
    """Keys of one write; ``end``: kernel time at which it was done."""

    keys: U8
    end: int = FOREVER
    index: KeySet | None = None

    def holds(self, keys: U8) -> npt.NDArray[np.bool_]:
        if self.index is None:
            self.index = KeySet(self.keys)
        return self.index.holds(keys)


class Touches:
    """Writes in the order in which they were judged."""

    __slots__ = ("_list",)

    def __init__(self) -> None:
        self._list: list[Touch] = []

    def begin(self, keys: U8) -> Touch:
        """The bridge is about to write these keys; set ``end`` on the answer when it is done."""
        touch = Touch(keys)
        self._list.append(touch)
        return touch

    def forget(self, watermark: int) -> None:
        """No record of an operation that began at or before ``watermark`` will arrive any more."""
        if self._list and self._list[0].end <= watermark:
            self._list = [t for t in self._list if t.end > watermark]

    def doubts(self, keys: U8, entered: U64) -> npt.NDArray[np.bool_] | None:
        """``bool[n]``: which changes may have been overtaken by a write; ``None``: none of them."""
        if not self._list or not len(keys):
            return None
        earliest = int(entered.min())
        doubtful: npt.NDArray[np.bool_] | None = None
        for touch in self._list:
            if touch.end < earliest:
                continue
            rows = np.flatnonzero(entered <= touch.end)
            held = rows[touch.holds(keys[rows])]
            if len(held):
                doubtful = np.zeros(len(keys), np.bool_) if doubtful is None else doubtful
                doubtful[held] = True
        return doubtful

    def since(self, began: int, others: U8 | None = None) -> KeySet | None:
        """All keys that may have been written at or after ``began``, and ``others``."""
        keys = [t.keys for t in self._list if t.end >= began]
        if others is not None:
            keys.append(others)
        return KeySet(np.concatenate(keys)) if keys else None
