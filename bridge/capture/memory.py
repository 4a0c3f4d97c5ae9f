"""Memory that was needed for a moment, back to the system."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass

ROWS_MIN = 16_384  # fewer entries leave nothing behind that is worth a call
WAIT_NANOSECONDS = 3_000_000_000  # until what a scan found has gone out, mostly


@dataclass(slots=True)
class AfterScans:
    """Gives memory back some time after a scan that held many entries at once."""

    _due: int = 0  # CLOCK_MONOTONIC; 0: nothing to give back

    def held(self, rows: int, now: int) -> None:
        """A scan ended ``now``, and had ``rows`` entries in memory."""
        if rows >= ROWS_MIN:
            self._due = now + WAIT_NANOSECONDS

    def look(self, now: int) -> None:
        if self._due and now > self._due:
            self._due = 0
            give_back()


def give_back() -> None:
    """Return what is free at the ends and within the heaps; it takes milliseconds.

    glibc keeps pages between allocations that live on, however much of them is free: after a map of
    a million entries was read and compared these were 100 MB (malloc_trim(3)). Other C libraries
    have no such call and are left alone.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
