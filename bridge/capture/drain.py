"""The one thread that empties the sources of all maps into their sinks.

Bounds: a turn asks each source that has something once, and a source's drain is bounded itself, so
that a busy map delays the others by one drain. When a sink is full the thread keeps what it
refused, that and no more, and leaves the source alone until the sink has taken it: the ring fills
up meanwhile and counts what it loses. A source or sink that raises is contained, counted, reported,
and asked again later and later.
"""

from __future__ import annotations

import contextlib
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from bridge.capture.source import ChangeSource
from bridge.errors import InvariantError
from bridge.model import DeltaBatch

Sink = Callable[[DeltaBatch], bool]
Report = Callable[[ChangeSource, Exception], None]

RETRY_SECONDS = 0.005  # a refused batch is offered again
PAUSE_SECONDS = 0.001  # between turns that found little: fewer wake-ups, larger batches
LITTLE_BYTES = 64 << 10
ERROR_SECONDS = 0.05  # after a first error, doubled with each further one in a row
ERROR_SECONDS_MAX = 5.0
STOP_SECONDS = 5.0
ERRORS_AT_END_MAX = 3  # of one source while the thread ends
JOIN_SECONDS = 30.0  # a thread that does not end within so long is a fault
YIELD_SECONDS = 0.0001


@dataclass(frozen=True, slots=True)
class DrainStatistics:
    """Counts of one source since it was added; they only grow. ``held_rows`` is of now."""

    drains: int = 0
    batches: int = 0
    rows: int = 0
    bytes: int = 0
    refusals: int = 0  # times that the sink was full
    errors: int = 0
    held_rows: int = 0  # rows that wait for room in the sink


@dataclass(slots=True, eq=False)
class _Slot:
    source: ChangeSource
    sink: Sink
    fd: int | None
    due: float  # when to ask the source though nothing woke the thread
    held: deque[DeltaBatch] = field(default_factory=deque)
    armed: bool = False  # whether epoll reports the descriptor
    removed: bool = False
    errors_in_row: int = 0
    drains: int = 0
    batches: int = 0
    rows: int = 0
    bytes: int = 0
    refusals: int = 0
    errors: int = 0
    held_rows: int = 0

    def take(self) -> int:
        """Drain the source; answers how many bytes of changes it had."""
        taken = self.source.drain()
        self.drains += 1
        self.batches += len(taken)
        rows = sum(len(batch) for batch in taken)
        size = sum(batch.nbytes for batch in taken)
        self.rows += rows
        self.bytes += size
        self.held_rows += rows
        self.held.extend(taken)
        return size

    def hand_over(self) -> bool:
        """Offer what is held, oldest first; False when the sink has no room."""
        while self.held and not self.removed:
            if not self.sink(self.held[0]):
                self.refusals += 1
                return False
            self.held_rows -= len(self.held.popleft())
        return True

    def statistics(self) -> DrainStatistics:
        return DrainStatistics(
            self.drains,
            self.batches,
            self.rows,
            self.bytes,
            self.refusals,
            self.errors,
            self.held_rows,
        )


class DrainThread:
    """Drains sources as epoll wakes it, and each at its interval too.

    ``report`` is called for each error of a source or its sink. The thread does not close sources.
    ``add`` and ``remove`` may be called from any thread, before the start too, and from a sink.
    """

    def __init__(
        self,
        report: Report | None = None,
        *,
        name: str = "mapbridge-drain",
        pause_seconds: float = PAUSE_SECONDS,
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._report = report
        self._pause_seconds = pause_seconds
        self._retry_seconds = retry_seconds
        self._slots: dict[int, _Slot] = {}  # by id of the source
        self._by_fd: dict[int, _Slot] = {}
        self._turn = threading.RLock()  # held while sources are served
        self._callers = 0  # threads that wait for it
        self._epoll = select.epoll()
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll.register(self._wake, select.EPOLLIN)
        self._stopping = False
        self._drain_until: float | None = None
        self._clean = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def is_alive(self) -> bool:
        """False before the start, after the stop, and after a fault of the thread itself."""
        return self._thread.is_alive()

    def add(self, source: ChangeSource, sink: Sink) -> None:
        """``sink`` is called in the thread; it answers False to be asked again a little later."""
        with self.standing_still():
            if id(source) in self._slots:
                raise InvariantError("drain thread: source was added before")
            slot = _Slot(source, sink, source.fileno(), time.monotonic())
            if slot.fd is not None:
                self._epoll.register(slot.fd, select.EPOLLIN)
                slot.armed = True
                self._by_fd[slot.fd] = slot
            self._slots[id(source)] = slot
        os.eventfd_write(self._wake, 1)

    def remove(self, source: ChangeSource, *, drain: bool = False) -> bool:
        """When this returns, the thread does not use the source any more.

        ``drain`` first takes what the source has, one drain, and offers it to the sink once.
        Answers whether everything that was taken from the source has reached the sink.
        """
        with self.standing_still():
            slot = self._slots.get(id(source))
            if slot is None:
                return True
            if drain:
                self._serve(slot)
            slot.removed = True
            del self._slots[id(source)]
            if slot.fd is not None:
                del self._by_fd[slot.fd]
                with contextlib.suppress(OSError):  # closed by its owner: epoll forgot it then
                    self._epoll.unregister(slot.fd)
            return not slot.held

    def stop(self, *, drain: bool = True, deadline_seconds: float = STOP_SECONDS) -> bool:
        """Ends the thread. Answers whether all that the sources had has reached their sinks.

        With ``drain`` each source is emptied first, until it has nothing or the deadline passes.
        """
        if drain:
            self._drain_until = time.monotonic() + deadline_seconds
        self._stopping = True
        if self._thread.ident is not None:
            os.eventfd_write(self._wake, 1)
            self._thread.join(deadline_seconds + JOIN_SECONDS)
            if self._thread.is_alive():
                raise InvariantError("drain thread: does not end")
        self._epoll.close()
        os.close(self._wake)
        return self._clean

    def statistics(self, source: ChangeSource) -> DrainStatistics:
        """Counts of a source that was added and not removed; zeros for another."""
        slot = self._slots.get(id(source))
        return slot.statistics() if slot is not None else DrainStatistics()

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """While this lasts no source is asked. May wait for the end of a turn."""
        self._callers += 1
        try:
            self._turn.acquire()
        finally:
            self._callers -= 1
        try:
            yield
        finally:
            self._turn.release()

    def _run(self) -> None:
        while not self._stopping:
            ready = [fd for fd, _ in self._epoll.poll(self._patience_seconds())]
            if self._wake in ready:
                os.eventfd_read(self._wake)
            with self._turn:
                taken = sum(self._serve(slot) for slot in self._ready_slots(ready))
            if taken < LITTLE_BYTES and ready != [self._wake]:
                time.sleep(self._pause_seconds)
            elif self._callers:
                time.sleep(YIELD_SECONDS)  # a lock is not fair: let them have it
        with self._turn:
            self._clean = self._drain_until is not None and self._empty(self._drain_until)

    def _patience_seconds(self) -> float | None:
        """How long to wait for a wake-up: until the next source is due."""
        with self._turn:
            due = min((slot.due for slot in self._slots.values()), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def _ready_slots(self, ready: list[int]) -> list[_Slot]:
        now = time.monotonic()
        woken = {id(slot): slot for fd in ready if (slot := self._by_fd.get(fd)) is not None}
        overdue = {id(slot): slot for slot in self._slots.values() if slot.due <= now}
        return list((woken | overdue).values())

    def _serve(self, slot: _Slot) -> int:
        """One turn of one source; answers how many bytes of changes it had."""
        taken = 0
        wait_seconds: float | None = None  # None: as long as the source likes
        try:
            if slot.removed:
                return 0
            if slot.hand_over():
                taken = slot.take()
            if not slot.hand_over():
                wait_seconds = self._retry_seconds
            slot.errors_in_row = 0
        except Exception as error:  # noqa: BLE001 - a source's fault must not stop the others
            wait_seconds = self._contain(slot, error)
        self._schedule(slot, wait_seconds)
        return taken

    def _contain(self, slot: _Slot, error: Exception) -> float:
        slot.errors += 1
        wait_seconds = min(ERROR_SECONDS * 2.0 ** min(slot.errors_in_row, 16), ERROR_SECONDS_MAX)
        slot.errors_in_row += 1
        if self._report is not None:
            with contextlib.suppress(Exception):  # nobody is left to be told
                self._report(slot.source, error)
        return wait_seconds

    def _schedule(self, slot: _Slot, wait_seconds: float | None) -> None:
        """Sets when the source is asked next; while it has to wait, epoll does not report it."""
        patience = slot.source.interval if wait_seconds is None else wait_seconds
        slot.due = time.monotonic() + patience
        arm = wait_seconds is None
        if slot.fd is not None and arm != slot.armed and not slot.removed:
            with contextlib.suppress(OSError):  # closed by its owner: errors of drain will tell
                self._epoll.modify(slot.fd, select.EPOLLIN if arm else 0)
                slot.armed = arm

    def _empty(self, deadline: float) -> bool:
        """Drains every source until it has nothing; False when one has something left.

        A source without a descriptor compares its whole map each time: it is asked once.
        """
        clean = True
        for slot in list(self._slots.values()):
            errors_max = slot.errors + ERRORS_AT_END_MAX
            while not self._emptied(slot):
                if slot.errors >= errors_max or time.monotonic() >= deadline:
                    clean = False
                    break
        return clean

    def _emptied(self, slot: _Slot) -> bool:
        drains, batches, errors = slot.drains, slot.batches, slot.errors
        self._serve(slot)
        if slot.held or slot.errors != errors:
            time.sleep(self._retry_seconds)
            return False
        return slot.drains > drains and (slot.fd is None or slot.batches == batches)
