"""A node's way to the log: one message on its way, and clearing up what became of it.

The rules are those of ``bridge.bus.strict``, which has tests of its own; here they matter for what
they let into the log: messages twice, and messages of a bridge that is dead.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from bridge.model import Delta, DeltaBatch, Origin
from tests.simulation.log import Attempt, Log


class FencedError(Exception):
    """Another instance bears the node's name."""


@dataclass(slots=True)
class Publisher:
    origin: Origin
    expected: int
    on_ack: Callable[[int, int], None]
    queue: list[DeltaBatch] = field(default_factory=list)
    sent: int = 0
    stored_rows: int = 0  # of ours, known to be stored
    attempt: Attempt | None = None
    stored: bool = False  # a message of this instance

    @property
    def waiting(self) -> int:
        return sum(len(batch) for batch in self.queue)

    def send(self, log: Log, rng: random.Random) -> bool:
        """The next message; it ends wherever it happens to."""
        if self.attempt is not None or not self.queue:
            return False
        whole = DeltaBatch.concatenate(self.queue)
        count = rng.randint(1, len(whole))
        self.queue = [whole.take(slice(count, None))] if count < len(whole) else []
        self._try(log, Delta(self.origin, self.sent + 1, whole.take(slice(0, count))))
        self.sent += count
        return True

    def settle(self, log: Log, rng: random.Random, *, patient: bool) -> bool:
        """An answer comes, or is missed and the log asked for one's last message."""
        attempt = self.attempt
        if attempt is None:
            return False
        if attempt.answer and (patient or rng.random() < 0.8):
            return self._done(attempt.answer)
        unseen = self.origin.node in log.unseen
        missed = not patient and rng.random() < (0.6 if unseen else 0.1)
        if attempt.answer is None and not missed and (log.carries(attempt) or unseen):
            return False
        return self._look(log, attempt)

    def _look(self, log: Log, attempt: Attempt) -> bool:
        last = log.last(self.origin.node)
        if last and log.messages[last - 1] is attempt.delta:
            return self._done(last)
        if last != self.expected:
            if self.fenced():
                raise FencedError(f"{self.origin.node}: {last}, ours {self.expected}")
            self.expected = last  # an earlier instance's message came late
        self._try(log, attempt.delta)
        return True

    def fenced(self) -> bool:
        """Whether somebody else's message behind an own one is that of a twin."""
        return self.stored

    def _try(self, log: Log, delta: Delta) -> None:
        self.attempt = Attempt(delta, self.expected)
        log.wire.append(self.attempt)

    def _done(self, sequence: int) -> bool:
        assert self.attempt is not None
        self.stored_rows = self.attempt.delta.last_sequence
        self.on_ack(self.stored_rows, sequence)
        self.expected, self.attempt, self.stored = sequence, None, True
        return True
