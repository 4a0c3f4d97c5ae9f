"""One order out of the changes of several CPUs, each of which has a buffer of its own.

Changes are put in the order of ``left``, the time at which an operation had ended. A record takes
that time a moment before the reader can see it, so a record of another CPU that is older may still
be on its way. Therefore what is younger than ``HOLD_NANOSECONDS`` is held back, and so is what is
younger than the youngest record that was read from a CPU whose buffer was not read to its end.

Invariant: what is given out is in the order of ``left``, within one answer and from one to the
next, except for a record that took longer than ``HOLD_NANOSECONDS`` to become visible. That one
comes behind records that ended after it had, so it began before their end: ``core/overlaps.py``
finds it, and if it is of the same key, that key is in doubt. The bound's length thus decides how
many writes doubt costs, never whether a value is right.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from bridge.model import DeltaBatch

HOLD_NANOSECONDS = 200_000  # a record is visible after some microseconds, interrupts aside
EVERYTHING = (1 << 64) - 1


class Stream:
    """What was read of one CPU and not given out yet."""

    __slots__ = ("_batches", "newest")

    def __init__(self) -> None:
        self.newest = 0  # the latest end of all that was read
        self._batches: list[DeltaBatch] = []

    @property
    def nbytes(self) -> int:
        return sum(batch.nbytes for batch in self._batches)

    @property
    def rows(self) -> int:
        return sum(len(batch) for batch in self._batches)

    def add(self, batch: DeltaBatch) -> None:
        self.newest = max(self.newest, int(batch.left.max()))
        self._batches.append(batch)

    def take(self, horizon: int) -> DeltaBatch | None:
        """What ended at ``horizon`` or before, in order."""
        if not self._batches:
            return None
        # An interrupt may send its record between another's taking the time and being sent.
        whole = in_order(DeltaBatch.concatenate(self._batches))
        cut = int(np.searchsorted(whole.left, np.uint64(horizon), side="right"))
        self._batches = [whole.take(slice(cut, None))] if cut < len(whole) else []
        return whole.take(slice(0, cut)) if cut else None


def merged(streams: Sequence[Stream], horizon: int) -> DeltaBatch | None:
    """What ended at ``horizon`` or before on any CPU, in order; ``None``: nothing did."""
    parts = [batch for stream in streams if (batch := stream.take(horizon)) is not None]
    return in_order(DeltaBatch.concatenate(parts)) if parts else None


def in_order(batch: DeltaBatch) -> DeltaBatch:
    """The batch by rising ``left``; changes of one time, such as those of a record, stay as are."""
    if bool((batch.left[1:] >= batch.left[:-1]).all()):
        return batch
    return batch.take(np.argsort(batch.left, kind="stable"))
