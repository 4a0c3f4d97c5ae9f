"""The queue between the thread that captures one map and the task that publishes its changes.

Bounded in bytes: a full outbox refuses, and the changes stay where they are, in the kernel's ring.
When nothing is taken for a while, the owner has what waits merged key by key, so that memory is
bounded by what the map can hold and only history shortens; what was taken is never touched.
Batches that wait are joined when they are taken, so that the log gets few large messages under load
and small ones at once when it is idle. No row is copied more than once.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge.model import DeltaBatch

CAPACITY_BYTES = 64 << 20
MERGE_SHARE = 4  # of the capacity must be new before what waits is merged again


@dataclass(frozen=True, slots=True)
class OutboxStatistics:
    """The queue as it is, and what it saw since it was made."""

    rows: int
    bytes: int
    capacity_bytes: int
    bytes_peak: int
    rows_accepted: int
    batches_refused: int
    rows_taken: int
    rows_merged: int = 0  # that a later change of their key replaced


class Outbox:
    """``put`` and ``statistics`` from any thread; ``wait`` and ``take`` from one event loop."""

    def __init__(
        self,
        key_size: int,
        value_size: int,
        capacity_bytes: int = CAPACITY_BYTES,
        *,
        first_sequence: int = 1,
    ) -> None:
        if capacity_bytes < 1 or first_sequence < 1:
            raise ValueError("capacity_bytes and first_sequence: need at least 1")
        self._shape = (key_size, value_size)
        self._capacity_bytes = capacity_bytes
        self._lock = threading.Lock()
        self._batches: deque[DeltaBatch] = deque()
        self._offset = 0  # rows of the oldest batch that are taken already
        self._next_sequence = first_sequence
        self._rows = 0
        self._bytes = 0
        self._bytes_peak = 0
        self._accepted = 0
        self._refused = 0
        self._taken = 0
        self._merged = 0
        self._moved_at = time.monotonic()  # when something was last taken, or began to wait
        self._unmerged_bytes = 0  # accepted since the last merge
        self._closed = False
        self._sleeper: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    @property
    def key_size(self) -> int:
        return self._shape[0]

    @property
    def value_size(self) -> int:
        return self._shape[1]

    @property
    def closed(self) -> bool:
        return self._closed

    def put(self, batch: DeltaBatch) -> bool:
        """Queue ``batch``; ``False`` when it does not fit or the outbox is closed.

        An empty outbox takes any batch, so that one larger than the bound can pass at all. The
        batch's arrays must not change afterwards.
        """
        shape = (batch.key_size, batch.value_size)
        if shape != self._shape:
            raise ValueError(f"batch: key and value sizes must be {self._shape} (got {shape})")
        if len(batch) == 0:
            return True
        size = batch.nbytes
        with self._lock:
            if self._closed or (self._batches and self._bytes + size > self._capacity_bytes):
                self._refused += 1
                return False
            if not self._batches:
                self._moved_at = time.monotonic()
            self._batches.append(batch)
            self._unmerged_bytes += size
            self._rows += len(batch)
            self._accepted += len(batch)
            self._bytes += size
            self._bytes_peak = max(self._bytes_peak, self._bytes)
            sleeper, self._sleeper = self._sleeper, None
        _wake(sleeper)
        return True

    async def wait(self) -> None:
        """Until there is something to take, or the outbox is closed."""
        event = asyncio.Event()
        with self._lock:
            if self._batches or self._closed:
                return
            assert self._sleeper is None, "two waiters on one outbox"
            self._sleeper = (asyncio.get_running_loop(), event)
        try:
            await event.wait()
        finally:
            with self._lock:
                self._sleeper = None

    def take(self, rows_max: int) -> tuple[int, DeltaBatch] | None:
        """The oldest rows, at most ``rows_max``, all of one cause, with the first one's sequence.

        ``None`` when nothing waits.
        """
        if rows_max < 1:
            raise ValueError(f"rows_max: needs at least 1 (got {rows_max})")
        parts: list[DeltaBatch] = []
        rows = 0
        with self._lock:
            if not self._batches:
                return None
            cause = self._batches[0].cause
            while self._batches and rows < rows_max and self._batches[0].cause == cause:
                batch = self._batches[0]
                end = min(len(batch), self._offset + rows_max - rows)
                whole = self._offset == 0 and end == len(batch)
                parts.append(batch if whole else batch.take(slice(self._offset, end)))
                rows += end - self._offset
                self._offset = end
                if end == len(batch):
                    # Bytes count until the last row goes: a slice keeps the whole batch alive.
                    self._batches.popleft()
                    self._bytes -= batch.nbytes
                    self._offset = 0
            self._moved_at = time.monotonic()
            first = self._next_sequence
            self._next_sequence += rows
            self._rows -= rows
            self._taken += rows
        return first, DeltaBatch.concatenate(parts)

    def stalled(self, seconds: float) -> bool:
        """Whether changes wait of which none was taken for so long."""
        with self._lock:
            return bool(self._batches) and time.monotonic() - self._moved_at >= seconds

    def merge(
        self, coalesce: Callable[[Sequence[DeltaBatch]], DeltaBatch]
    ) -> tuple[int, DeltaBatch] | None:
        """Replace what waits by ``coalesce`` of it; its first sequence, and what waits now.

        ``None``: too little was accepted since the last merge for another one to be worth its time.
        """
        with self._lock:
            if not self._batches or self._unmerged_bytes < self._capacity_bytes // MERGE_SHARE:
                return None
            waiting = list(self._batches)
            waiting[0] = waiting[0].take(slice(self._offset, None))
            merged = coalesce(waiting)
            self._merged += self._rows - len(merged)
            self._batches = deque([merged])
            self._offset, self._unmerged_bytes = 0, 0
            self._rows, self._bytes = len(merged), merged.nbytes
            return self._next_sequence, merged

    def close(self) -> None:
        """Refuse what comes from now on; what is queued can still be taken."""
        with self._lock:
            self._closed = True
            sleeper, self._sleeper = self._sleeper, None
        _wake(sleeper)

    def statistics(self) -> OutboxStatistics:
        with self._lock:
            return OutboxStatistics(
                rows=self._rows,
                bytes=self._bytes,
                capacity_bytes=self._capacity_bytes,
                bytes_peak=self._bytes_peak,
                rows_accepted=self._accepted,
                batches_refused=self._refused,
                rows_taken=self._taken,
                rows_merged=self._merged,
            )


def _wake(sleeper: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None) -> None:
    if sleeper is None:
        return  # the taker is at work and will look again by itself
    loop, event = sleeper
    with contextlib.suppress(RuntimeError):  # the loop has ended, and the waiter with it
        loop.call_soon_threadsafe(event.set)
