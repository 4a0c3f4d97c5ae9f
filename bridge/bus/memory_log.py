"""The log in memory: what JetStream promises, for tests and simulations.

A ``MemoryLog`` is the server; each node has a ``MemoryBus`` on it. Faults are asked for by name and
happen to the next attempt, so that a seed decides them.
"""

from __future__ import annotations

import enum
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from bridge.bus.buffer import Raw
from bridge.bus.protocol import LogState
from bridge.bus.strict import Ack, AttemptError, Last


class Fault(enum.Enum):
    """What can happen to an attempt to store."""

    LOST = "lost"  # it never arrives
    ACK_LOST = "ack lost"  # it is stored, and the sender does not learn it
    LATE = "late"  # it arrives behind the sender's next attempt


@dataclass(slots=True)
class _Late:
    subject: str
    data: bytes
    message_id: str
    expected: int


class MemoryLog:
    """One cluster's log: one order, ids seen once, conditional appends."""

    def __init__(
        self,
        cluster: str,
        clock_ns: Callable[[], int] = time.time_ns,
        *,
        ids_first: bool = False,
    ) -> None:
        self.cluster = cluster
        self._ids_first = ids_first  # servers before 2.12, and clusters, look at the id first
        self.faults: deque[Fault | None] = deque()  # one per attempt; None: nothing happens
        self._clock_ns = clock_ns
        self._generation = 1
        self._first = 1
        self._messages: deque[Raw] = deque()
        self._last_of: dict[str, Last] = {}
        self._ids: dict[str, int] = {}
        self._late: list[_Late] = []
        self._listeners: list[Callable[[], None]] = []

    @property
    def id(self) -> str:
        return f"{self.cluster}-{self._generation}"

    @property
    def state(self) -> LogState:
        return LogState(
            id=self.id,
            first=self._first,
            last=self._first + len(self._messages) - 1,
            messages=len(self._messages),
            bytes=sum(len(message.data) for message in self._messages),
        )

    @property
    def last_sequence(self) -> int:
        return self._first + len(self._messages) - 1

    @property
    def first_sequence(self) -> int:
        return self._first

    def append(
        self, subject: str, data: bytes, message_id: str = "", expected: int | None = None
    ) -> Ack:
        """Store a message; raises ``AttemptError`` when ``expected`` is not the subject's last."""
        last = self._last_of.get(subject)
        if self._ids_first and message_id in self._ids:
            return Ack(self._ids[message_id], True)
        if expected is not None and expected != (last.sequence if last is not None else 0):
            raise AttemptError(f"wrong last sequence: {last.sequence if last else 0}")
        if message_id and message_id in self._ids:
            return Ack(self._ids[message_id], True)
        sequence = self.last_sequence + 1
        self._messages.append(Raw(sequence, self._clock_ns(), subject, data))
        self._last_of[subject] = Last(sequence, message_id)
        if message_id:
            self._ids[message_id] = sequence
        self._notify()
        return Ack(sequence, False)

    def attempt(self, subject: str, data: bytes, message_id: str, expected: int) -> Ack:
        """``append`` with the faults that were asked for."""
        fault = self.faults.popleft() if self.faults else None
        if fault is Fault.LOST:
            raise AttemptError("no answer")
        if fault is Fault.LATE:
            self._late.append(_Late(subject, data, message_id, expected))
            raise AttemptError("no answer")
        try:
            ack = self.append(subject, data, message_id, expected)
        finally:
            self._deliver_late()
        if fault is Fault.ACK_LOST:
            raise AttemptError("no answer")
        return ack

    def last(self, subject: str) -> Last | None:
        last = self._last_of.get(subject)
        return last if last is not None and last.sequence >= self._first else None

    def read(self, sequence: int) -> Raw:
        return self._messages[sequence - self._first]

    def truncate(self, first: int) -> None:
        """Retention: drop what lies before ``first``."""
        while self._messages and self._first < first:
            self._messages.popleft()
            self._first += 1
        self._last_of = {s: at for s, at in self._last_of.items() if at.sequence >= self._first}
        self._notify()

    def replace(self) -> None:
        """Make the log anew, empty, as after the loss of its disk."""
        self._generation += 1
        self._first = 1
        self._messages.clear()
        self._last_of.clear()
        self._ids.clear()
        self._notify()

    def listen(self, callback: Callable[[], None]) -> None:
        self._listeners.append(callback)

    def unlisten(self, callback: Callable[[], None]) -> None:
        self._listeners.remove(callback)

    def _notify(self) -> None:
        for listener in list(self._listeners):
            listener()

    def _deliver_late(self) -> None:
        late, self._late = self._late, []
        for one in late:
            try:
                self.append(one.subject, one.data, one.message_id, one.expected)
            except AttemptError:
                continue
