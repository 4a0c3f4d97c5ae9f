"""When changes of others are too many to be believed: a mass change stops and asks.

A program gone wrong on one node can empty the maps of all. So the keys that others delete, and
those that they change at all, are counted within a window of time, and compared with what the map
holds.

Invariant: a batch is let through only when, with it, no limit is exceeded by the distinct keys that
others deleted (changed) within the window. Keys are counted by their hashes: a collision counts
one key too few. Beyond ``ROWS_MAX`` remembered rows the window is stretched, never shortened.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from bridge.core.keys import hash_rows
from bridge.model import U64, DeltaBatch, Op

ROWS_MAX = 1 << 20
ENTRIES_MIN = 100  # of a map with fewer, nothing is a mass


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """Shares of the map's entries, within ``seconds``; ``None``: no limit.

    ``entries_min``: so many keys at least are a mass.
    """

    deletes: float | None = None
    changes: float | None = None
    seconds: float = 10.0
    entries_min: int = ENTRIES_MIN

    @property
    def any(self) -> bool:
        return self.deletes is not None or self.changes is not None


@dataclass(frozen=True, slots=True)
class MassChange:
    """What exceeded a limit: ``keys`` of ``entries``."""

    what: str  # "deleted" or "changed"
    keys: int
    entries: int
    seconds: float

    def __str__(self) -> str:
        return f"{self.keys} of {self.entries} entries {self.what} within {self.seconds:g} s"


@dataclass(slots=True)
class _Window:
    share: float
    seconds: float
    entries_min: int = ENTRIES_MIN
    parts: deque[tuple[float, U64]] = field(default_factory=deque)
    rows: int = 0
    enough: int = field(init=False)  # fewer distinct keys cannot exceed the limit

    def __post_init__(self) -> None:
        self.enough = self.entries_min

    def add(self, now: float, hashes: U64) -> None:
        while self.parts and self.parts[0][0] < now - self.seconds:
            self.rows -= len(self.parts.popleft()[1])
            self.enough = self.entries_min  # what the map holds may have changed meanwhile
        if len(hashes):
            self.parts.append((now, np.unique(hashes)))
            self.rows += len(self.parts[-1][1])
        if self.rows > ROWS_MAX:
            whole = self._distinct()
            self.parts, self.rows = deque([(now, whole)]), len(whole)

    @property
    def suspicious(self) -> bool:
        return self.rows >= self.enough and len(self._distinct()) >= self.enough

    def exceeded(self, entries: int) -> int:
        """Distinct keys, when they are more than the share of ``entries``; else 0."""
        keys = len(self._distinct())
        self.enough = max(int(self.share * entries) + 1, self.entries_min)
        return keys if keys >= self.enough else 0

    def taken(self, now: float) -> int:
        """Distinct keys of batches before that of ``now``."""
        before = [hashes for time, hashes in self.parts if time < now]
        return len(np.unique(np.concatenate(before))) if before else 0

    def clear(self) -> None:
        self.parts.clear()
        self.rows, self.enough = 0, self.entries_min

    def _distinct(self) -> U64:
        if len(self.parts) == 1:
            return self.parts[0][1]
        return np.unique(np.concatenate([h for _, h in self.parts] or [np.zeros(0, np.uint64)]))


class MassChangeGuard:
    """Asked before each batch; times are of one steady clock."""

    def __init__(self, limits: GuardLimits) -> None:
        self._now = 0.0
        self._deletes = _window(limits.deletes, limits)
        self._changes = _window(limits.changes, limits)

    def note(self, now: float, batches: Sequence[DeltaBatch]) -> bool:
        """Take changes of others in; whether ``judge`` has to be asked before they are written."""
        self._now = now
        for batch in batches:
            hashes = hash_rows(batch.keys)
            if self._deletes is not None:
                self._deletes.add(now, hashes[batch.ops == Op.DELETE])
            if self._changes is not None:
                self._changes.add(now, hashes[batch.ops != Op.EVICT])
        return any(w is not None and w.suspicious for w in (self._deletes, self._changes))

    def judge(self, entries: int) -> MassChange | None:
        """``entries``: what the map holds now. What was deleted before counts with it."""
        if self._deletes is not None:
            entries += self._deletes.taken(self._now)
            keys = self._deletes.exceeded(entries)
            if keys:
                return MassChange("deleted", keys, entries, self._deletes.seconds)
        if self._changes is not None:
            keys = self._changes.exceeded(entries)
            if keys:
                return MassChange("changed", keys, entries, self._changes.seconds)
        return None

    def clear(self) -> None:
        """An operator has looked: begin to count anew."""
        for window in (self._deletes, self._changes):
            if window is not None:
                window.clear()


def _window(share: float | None, limits: GuardLimits) -> _Window | None:
    return None if share is None else _Window(share, limits.seconds, limits.entries_min)
