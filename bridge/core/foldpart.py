"""A range of the fold: entries whose key hash lies in it, sorted by that hash.

The fold is kept in ranges so that no single step takes long, however large the map: changes wait
beside a range until there are enough of them, and are then merged into that range alone.

Invariant: the newest change of each key decides. A row is *late* when its newest change was noted
after the open scan began; while a scan is open, deleted keys stay as late rows that are not held.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from bridge.core.keys import equal_rows
from bridge.model import U8, U64, Flags, Rows

ROWS_MAX = 32_768  # of a range; beyond it is split


class CollisionError(Exception):
    """Two keys share a hash."""


@dataclass(frozen=True, slots=True)
class Noted:
    """Changes in their order: whether each leaves its key in the map, and was noted late.

    ``seen``: the open scan has read the entry just as it stands here.
    """

    held: Flags
    late: Flags
    seen: Flags
    keys: U8
    hashes: U64
    values: U64  # hashes of the values

    def __len__(self) -> int:
        return len(self.held)

    def take(self, rows: slice | Rows) -> Noted:
        if isinstance(rows, slice):
            return Noted(
                self.held[rows],
                self.late[rows],
                self.seen[rows],
                self.keys[rows],
                self.hashes[rows],
                self.values[rows],
            )
        # As in ``DeltaBatch.take``: several times faster than indexing.
        return Noted(
            self.held.take(rows),
            self.late.take(rows),
            self.seen.take(rows),
            self.keys.take(rows, axis=0),
            self.hashes.take(rows),
            self.values.take(rows),
        )

    def unseen(self) -> Noted:
        """The same for a scan that begins: nothing is late, nothing was seen."""
        n = len(self)
        flags = np.zeros(n, np.bool_), np.zeros(n, np.bool_)
        return Noted(self.held, *flags, self.keys, self.hashes, self.values)

    @staticmethod
    def concatenate(parts: list[Noted]) -> Noted:
        if len(parts) == 1:
            return parts[0]
        return Noted(
            np.concatenate([p.held for p in parts]),
            np.concatenate([p.late for p in parts]),
            np.concatenate([p.seen for p in parts]),
            np.concatenate([p.keys for p in parts]),
            np.concatenate([p.hashes for p in parts]),
            np.concatenate([p.values for p in parts]),
        )

    @staticmethod
    def empty(key_size: int) -> Noted:
        no_flags, no_hashes = np.zeros(0, np.bool_), np.zeros(0, np.uint64)
        keys = np.zeros((0, key_size), np.uint8)
        return Noted(no_flags, no_flags, no_flags, keys, no_hashes, no_hashes)


@dataclass(slots=True)
class FoldPart:
    """``rows`` are sorted by hash, each key once; ``low``: the least hash that belongs here.

    ``stale``: what waits holds changes from before the open scan, so that ``rows`` alone say
    nothing of it.
    """

    low: int
    rows: Noted
    stale: bool = False
    waiting: list[Noted] = field(default_factory=list)
    waiting_rows: int = 0

    def add(self, changes: Noted) -> None:
        self.waiting.append(changes)
        self.waiting_rows += len(changes)

    def merge(self, *, scanning: bool) -> None:
        """Fold what waits into the rows. Raises ``CollisionError`` and leaves all as it was."""
        if not self.waiting:
            return
        whole = Noted.concatenate([self.rows, *self.waiting])
        order = np.argsort(whole.hashes, kind="stable")
        hashes = whole.hashes.take(order)
        same = hashes[1:] == hashes[:-1]
        if same.any():
            some, others = order[1:][same], order[:-1][same]
            if not np.array_equal(whole.keys.take(some, axis=0), whole.keys.take(others, axis=0)):
                raise CollisionError
            order = order[np.append(~same, True)]
        kept = whole.held[order]
        if scanning:
            kept |= whole.late[order]
        self.rows = whole.take(order if kept.all() else order[kept])
        self.waiting, self.waiting_rows, self.stale = [], 0, False

    def begin(self) -> None:
        """A scan begins: nothing is late yet, and no deleted key need be remembered."""
        rows = self.rows if self.rows.held.all() else self.rows.take(np.flatnonzero(self.rows.held))
        self.rows = rows.unseen()
        self.waiting = [changes.unseen() for changes in self.waiting]
        self.stale = bool(self.waiting)

    def sift(self, hashes: U64, keys: U8, value_hashes: U64) -> Rows:
        """Which of some scanned entries stand here just so; they are seen from now on."""
        rows = self.rows
        if self.stale or not len(rows):
            return np.zeros(0, np.intp)
        at = np.searchsorted(rows.hashes, hashes)
        at[at == len(rows)] = 0
        same = rows.hashes.take(at) == hashes
        same &= rows.values.take(at) == value_hashes
        same &= rows.held.take(at)
        found = np.flatnonzero(same)
        at = at.take(found)
        equal = equal_rows(rows.keys.take(at, axis=0), keys.take(found, axis=0))
        rows.seen[at[equal]] = True
        return found[equal]

    def split(self) -> list[FoldPart]:
        """Ranges of at most ``ROWS_MAX`` rows that take this one's place."""
        count = -(-len(self.rows) // ROWS_MAX)
        if count < 2 or self.waiting:
            return [self]
        cuts = [len(self.rows) * number // count for number in range(count + 1)]
        return [
            FoldPart(
                self.low if number == 0 else int(self.rows.hashes[cuts[number]]),
                # Copied: a view would keep the whole range's columns as long as itself.
                self.rows.take(np.arange(cuts[number], cuts[number + 1])),
            )
            for number in range(count)
        ]
