"""Own changes of the recent past: which of one key overlapped in time, so that their order is open.

Two processors may change one key at the same time, and a softirq may do so inside an operation that
it interrupts; the ring then tells the order in which the operations returned, not the one in which
the map took them. Two changes of a key are in that doubt when the later record began at or before
the earlier one's end.

Invariant: a change that began at or before the end of an earlier record of its key is always found.
Keys are told apart by hash alone: a collision marks a key in vain and costs one write.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.core.keys import hash_rows
from bridge.core.touches import GRACE_NANOSECONDS
from bridge.model import U8, U64

ROWS_MAX = 65_536
_TIME_BITS = 40  # nanoseconds of one window, 18 minutes; the bits above hold the key's number


@dataclass(slots=True)
class _Captured:
    keys: U8
    left: U64
    newest: int
    reading: int  # when the reading of the map began that found all of these; 0: not so
    hashes: U64 | None = None


class Overlaps:
    """The last ``ROWS_MAX`` own changes at least, in whole batches.

    Ends of what has been dropped are kept as one time, ``floor``: whatever began at or before it is
    in doubt, so the bound on memory costs writes and never a wrong value. What a reading of the map
    found is another matter: its parts all bear the reading's times, and have each key once. They
    put no other part in doubt, or all but the first ``ROWS_MAX`` rows of a large map would be.
    """

    __slots__ = ("_batches", "_newest", "_reading", "_reading_floor", "_rows", "floor")

    def __init__(self) -> None:
        self.floor = 0
        self._reading = 0  # the newest of which something has been dropped,
        self._reading_floor = 0  # and the newest end of that
        self._batches: list[_Captured] = []
        self._rows = 0
        self._newest = 0  # end of the newest change so far

    def __len__(self) -> int:
        return self._rows

    def add(self, keys: U8, entered: U64, left: U64) -> npt.NDArray[np.bool_] | None:
        """Take a batch in; ``bool[n]``: which of its changes are in doubt, ``None``: none is.

        A change whose begin is unknown (``entered`` 0) began as long ago as it can have: a softirq
        that interrupts an operation may be what made it forget.
        """
        if not len(keys):
            return None
        grace = np.uint64(GRACE_NANOSECONDS)
        entered = np.where(entered == 0, left - np.minimum(left, grace), entered)
        ends = np.empty(len(left) + 1, np.uint64)
        ends[0], ends[1:] = self._newest, left
        before = np.maximum.accumulate(ends, out=ends)
        candidates = entered <= before[:-1]
        batch = _Captured(keys, left, int(left.max()), _reading_of(entered, left))
        doubtful: npt.NDArray[np.bool_] | None = None
        if candidates.any():
            # The search compares times from the earliest candidate on: to it, all before are one.
            doubtful = self._search(batch, entered, candidates) & candidates
            floor = self.floor
            if batch.reading != self._reading:
                floor = max(floor, self._reading_floor)
            if floor:
                doubtful |= entered <= np.uint64(floor)
        self._newest = int(before[-1])
        self._keep(batch)
        return doubtful if doubtful is not None and doubtful.any() else None

    def _keep(self, batch: _Captured) -> None:
        self._batches.append(batch)
        self._rows += len(batch.left)
        dropped = 0
        while self._rows - len(self._batches[dropped].left) >= ROWS_MAX:
            self._drop(self._batches[dropped])
            self._rows -= len(self._batches[dropped].left)
            dropped += 1
        del self._batches[:dropped]

    def _drop(self, batch: _Captured) -> None:
        if not batch.reading:
            self.floor = max(self.floor, batch.newest)
            return
        if batch.reading != self._reading:
            self.floor = max(self.floor, self._reading_floor)
            self._reading, self._reading_floor = batch.reading, 0
        self._reading_floor = max(self._reading_floor, batch.newest)

    def _search(
        self, batch: _Captured, entered: U64, candidates: npt.NDArray[np.bool_]
    ) -> npt.NDArray[np.bool_]:
        earliest = int(entered[candidates].min())
        parts = [b for b in self._batches if b.newest >= earliest]
        parts.append(batch)
        for part in parts:
            if part.hashes is None:
                part.hashes = hash_rows(part.keys)
        hashes = np.concatenate([p.hashes for p in parts if p.hashes is not None])
        left = np.concatenate([p.left for p in parts])
        began = np.concatenate([np.full(len(left) - len(entered), _LAST, np.uint64), entered])
        rows = _repeated(hashes)
        found = np.zeros(len(left), np.bool_)
        if len(rows):
            rows = rows[np.argsort(hashes[rows], kind="stable")]
            found[rows] = _overtaken(hashes[rows], began[rows], left[rows], earliest)
        return found[len(left) - len(entered) :]


def _reading_of(entered: U64, left: U64) -> int:
    """When the reading began, if all rows bear one begin and one end: a call that did many does."""
    same = len(left) > 1 and bool((entered == entered[0]).all() and (left == left[0]).all())
    return int(entered[0]) if same else 0


_LAST = np.uint64((1 << 64) - 1)


def _repeated(hashes: U64) -> npt.NDArray[np.intp]:
    """Rows whose hash may occur more than once."""
    size = max(1 << (4 * len(hashes)).bit_length(), 1 << 13)
    slots = (hashes & np.uint64(size - 1)).view(np.intp)
    numbers = np.arange(len(hashes), dtype=np.int32)
    table = np.zeros(size, np.int32)
    table[slots] = numbers
    shared = slots[table[slots] != numbers]
    if not len(shared):
        return np.zeros(0, np.intp)
    taken = np.zeros(size, np.bool_)
    taken[shared] = True
    return np.flatnonzero(taken[slots])


def _overtaken(hashes: U64, began: U64, left: U64, earliest: int) -> npt.NDArray[np.bool_]:
    """Of rows grouped by hash: which began at or before the largest end above them in their group.

    One running maximum serves all groups, since the group's number stands above the time.
    """
    limit = np.uint64((1 << _TIME_BITS) - 1)
    base = np.uint64(max(earliest - 1, 0))
    ends = np.where(left > base, np.minimum(left - base, limit), np.uint64(0))
    begins = np.where(began > base, np.minimum(began - base, limit), np.uint64(0))
    begins[began == _LAST] = limit
    group = np.zeros(len(hashes), np.uint64)
    group[1:] = np.cumsum(hashes[1:] != hashes[:-1])
    group += np.uint64(1)
    group <<= np.uint64(_TIME_BITS)
    highest = np.maximum.accumulate(group | ends)
    found = np.zeros(len(hashes), np.bool_)
    found[1:] = (group[1:] | begins[1:]) <= highest[:-1]
    found[began == _LAST] = False
    return found
