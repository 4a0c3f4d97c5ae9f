"""Own changes that have not come back in the stream yet, capture by capture."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from bridge.core.keys import KeySet
from bridge.model import U8, U64, DeltaBatch, Flags


@dataclass(frozen=True, slots=True)
class Pending:
    """Own changes of one capture. ``sequences`` of its rows, where they have holes."""

    last_sequence: int
    keys: U8
    sequences: U64 | None

    @property
    def first_sequence(self) -> int:
        if self.sequences is not None:
            return int(self.sequences[0])
        return self.last_sequence - len(self.keys) + 1

    def before(self, sequence: int) -> Pending:
        """What of it comes before an own ``sequence``."""
        if self.last_sequence < sequence:
            return self
        if self.sequences is None:
            count = sequence - self.first_sequence
            return Pending(sequence - 1, self.keys[:count], None)
        count = int(np.searchsorted(self.sequences, np.uint64(sequence)))
        return Pending(sequence - 1, self.keys[:count], self.sequences[:count])

    def behind(self, sequence: int) -> Pending:
        """What of it comes after an own ``sequence`` that has been observed."""
        first = len(self.keys) - (self.last_sequence - sequence)
        if self.sequences is not None:
            first = int(np.searchsorted(self.sequences, np.uint64(sequence), side="right"))
        if first <= 0:
            return self
        rest = None if self.sequences is None else self.sequences[first:]
        return Pending(self.last_sequence, self.keys[first:], rest)


class PendingChanges:
    """All of them, in their order. Not thread-safe: the owner's lock makes it atomic."""

    __slots__ = ("_captures", "_keys")

    def __init__(self) -> None:
        self._captures: deque[Pending] = deque()
        self._keys: KeySet | None = None  # of all captures, made when asked for

    def __len__(self) -> int:
        return sum(len(capture.keys) for capture in self._captures)

    def add(self, first: int, batch: DeltaBatch, lasting: Flags | None) -> None:
        """Own changes from sequence ``first`` on. ``lasting``: which of them are kept."""
        keys, sequences = batch.keys, None
        if lasting is not None:
            rows = np.flatnonzero(lasting)
            keys, sequences = keys.take(rows, axis=0), (rows + first).astype(np.uint64)
        if len(keys):
            self._captures.append(Pending(first + len(batch) - 1, keys, sequences))
            self._keys = None

    def drop_from(self, first: int) -> None:
        """Own changes from sequence ``first`` on were never sent, and will not be."""
        while self._captures and self._captures[-1].first_sequence >= first:
            self._captures.pop()
        if self._captures and self._captures[-1].last_sequence >= first:
            self._captures[-1] = self._captures[-1].before(first)
        self._keys = None

    def before(self, sequence: int) -> U8 | None:
        """The keys of those before an own ``sequence``; ``None``: there are none."""
        some = [c.before(sequence).keys for c in self._captures if c.first_sequence < sequence]
        return np.concatenate(some) if some else None

    def release(self, sequence: int) -> None:
        """Own changes up to ``sequence`` are pending no more."""
        while self._captures and self._captures[0].last_sequence <= sequence:
            self._captures.popleft()
            self._keys = None
        if self._captures:
            rest = self._captures[0].behind(sequence)
            if rest is self._captures[0]:
                return
            self._keys = None
            if len(rest.keys):
                self._captures[0] = rest
            else:
                self._captures.popleft()  # what comes after it are evictions only

    def holds(self, keys: U8) -> Flags:
        """``bool[n]``: which of the given keys have a pending change."""
        if not self._captures:
            return np.zeros(len(keys), np.bool_)
        if self._keys is None:
            self._keys = KeySet(np.concatenate([c.keys for c in self._captures]))
        return self._keys.holds(keys)

    def without(self, batch: DeltaBatch) -> DeltaBatch:
        """The changes on other keys than those that are pending."""
        if not self._captures:
            return batch
        held = self.holds(batch.keys)
        return batch.take(~held) if held.any() else batch
