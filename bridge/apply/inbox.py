"""The bounded way from the event loop to the writer thread.

The event loop puts messages in and waits when there is no room; the writer thread takes what waits,
grouped by map, in stream order within a map. The bound is in bytes; one message always fits.
"""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass

from bridge.apply.loading import Load
from bridge.model import Delta

TAKE_BYTES_MAX = 4 << 20  # one turn of the writer: large enough to fill batches, small for latency


@dataclass(frozen=True, slots=True)
class Arrival:
    """A message at its place (``sequence``) in the stream, or a part of a snapshot (``load``).

    A snapshot ends with a part without rows.
    """

    sequence: int
    delta: Delta
    load: Load | None = None


@dataclass(frozen=True, slots=True)
class InboxStatistics:
    """Bytes and messages that wait, the most there ever were, how often the loop had to wait."""

    waiting_bytes: int
    waiting: int
    peak_bytes: int
    waits: int


class Inbox:
    """One producer (the event loop), one consumer (the writer thread)."""

    def __init__(self, bytes_max: int, loop: asyncio.AbstractEventLoop) -> None:
        self._bytes_max = bytes_max
        self._loop = loop
        self._lock = threading.Lock()
        self._filled = threading.Condition(self._lock)
        self._room = asyncio.Event()
        self._waiting: dict[str, list[Arrival]] = {}
        self._bytes = self._messages = self._peak = self._waits = 0
        self._starved = False
        self._closed = False
        self._taken = ""  # the map whose messages were taken last, empty when it was discarded

    async def put(self, arrival: Arrival) -> None:
        """Hand over one message; returns when it is in, which may take until there is room."""
        size = arrival.delta.batch.nbytes
        while not self._try_put(arrival, size):
            self._waits += 1
            await self._room.wait()

    def _try_put(self, arrival: Arrival, size: int) -> bool:
        with self._lock:
            if self._bytes and self._bytes + size > self._bytes_max:
                self._starved = True
                self._room.clear()
                return False
            self._waiting.setdefault(arrival.delta.origin.map, []).append(arrival)
            self._bytes += size
            self._messages += 1
            self._peak = max(self._peak, self._bytes)
            self._filled.notify()
            return True

    def take(self, timeout: float) -> tuple[str, list[Arrival]] | None:
        """Messages of one map, oldest first; ``None`` after ``timeout`` seconds or when closed."""
        with self._lock:
            if not self._waiting and not self._closed:
                self._filled.wait(timeout)
            if not self._waiting:
                return None
            name = next(iter(self._waiting))
            queue = self._waiting.pop(name)
            taken = bytes_taken = 0
            for arrival in queue:
                bytes_taken += arrival.delta.batch.nbytes
                taken += 1
                if bytes_taken >= TAKE_BYTES_MAX:
                    break
            if taken < len(queue):
                self._waiting[name] = queue[taken:]  # behind the other maps: none starves
            self._bytes -= bytes_taken
            self._messages -= taken
            self._taken = name
            wake, self._starved = self._starved, False
        if wake:
            self._loop.call_soon_threadsafe(self._room.set)
        return name, queue[:taken]

    def discard(self, name: str) -> None:
        """Drop what waits for a map that is not written any more; nobody may put more of it in."""
        with self._lock:
            queue = self._waiting.pop(name, [])
            self._bytes -= sum(arrival.delta.batch.nbytes for arrival in queue)
            self._messages -= len(queue)
            self._taken = "" if self._taken == name else self._taken
            wake, self._starved = self._starved, False
        if wake:
            self._loop.call_soon_threadsafe(self._room.set)

    def holds_good(self, name: str) -> bool:
        """Whether what ``take`` last gave, messages of ``name``, was not discarded since."""
        with self._lock:
            return self._taken == name

    def wake(self) -> None:
        """Let ``take`` return without waiting once, though there may be nothing to take."""
        with self._lock:
            self._filled.notify()

    def close(self) -> None:
        """Let ``take`` return without waiting; what is inside can still be taken."""
        with self._lock:
            self._closed = True
            self._filled.notify_all()

    @property
    def closed(self) -> bool:
        return self._closed

    def statistics(self) -> InboxStatistics:
        with self._lock:
            return InboxStatistics(self._bytes, self._messages, self._peak, self._waits)
