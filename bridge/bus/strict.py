"""Publishing without loss, repetition or reordering: the rules, apart from any broker.

Invariant: ``expected`` is the log sequence of the last message on our subject that is ours (or
that we took over at the start), and at most one message of ours beyond it can exist. Every attempt
is conditional on ``expected``, so an attempt that arrives late, from a connection long gone, can
only be refused or be the very message that is being sent. After any error the log's last message on
the subject tells which of three things is true: ours is stored; nothing changed, send again;
somebody else wrote there, who bears our name: we are fenced.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bridge.bus.protocol import (
    MESSAGE_OVERHEAD_BYTES,
    BusClosedError,
    DuplicateAckError,
    FencedError,
    LogReplacedError,
    LogState,
    LogUnavailableError,
    MessageTooLargeError,
    PublisherCounters,
)
from bridge.bus.shorter import Shorter
from bridge.model import Delta, Origin
from bridge.wire.codec import encode
from bridge.wire.subjects import delta_subject, message_id

_PAUSE_SECONDS_MIN = 0.05
_PAUSE_SECONDS_MAX = 2.0
_TAKEOVERS_MAX = 10
_REPORT_AT = 4  # failed attempts before the first report, then each time as many more
_FATAL = (
    BusClosedError,
    DuplicateAckError,
    FencedError,
    LogReplacedError,
    LogUnavailableError,
    MessageTooLargeError,
)


class AttemptError(Exception):
    """An attempt failed, or its outcome is not known; the log's last message will tell."""


@dataclass(frozen=True, slots=True)
class Ack:
    """The log's answer: where the message is stored, and whether its id had been seen before."""

    sequence: int
    duplicate: bool


@dataclass(frozen=True, slots=True)
class Last:
    """The newest message of a subject."""

    sequence: int
    message_id: str


class Store(Protocol):
    """What a publisher needs of a log."""

    @property
    def max_payload(self) -> int: ...

    async def ready(self) -> None:
        """Wait until the log can be reached; raises ``BusClosedError``."""

    async def put(self, subject: str, data: bytes, message_id: str, expected: int) -> Ack:
        """One attempt to store; raises ``AttemptError``, or a final error of the bus."""

    async def last(self, subject: str) -> Last | None:
        """The newest message of ``subject``; raises ``AttemptError``."""

    async def state(self) -> LogState:
        """The log now; raises ``AttemptError``."""


class StrictPublisher:
    """Implements ``Publisher`` over a ``Store``."""

    def __init__(
        self,
        store: Store,
        origin: Origin,
        log_id: str,
        expected: int,
        report: Callable[[str], None],
    ) -> None:
        self.counters = PublisherCounters()
        self.trouble = ""
        self._store = store
        self._origin = origin
        self._subject = delta_subject(origin)
        self._log_id = log_id
        self._expected = expected
        self._report = report
        self._lock = asyncio.Lock()
        self._tried = ""  # id of the message whose fate may be unknown
        self._shorter = Shorter()
        self._doubtful = False  # an attempt was made and its answer not seen
        self._takeovers = 0
        self._own_stored = False
        self._end: BaseException | None = None

    @staticmethod
    async def open(store: Store, origin: Origin, report: Callable[[str], None]) -> StrictPublisher:
        """A publisher that goes on behind the last message of its subject."""
        pauses = _Pauses()
        while True:
            await store.ready()
            try:
                state = await store.state()
                last = await store.last(delta_subject(origin))
            except AttemptError as error:
                await pauses.next(error, report)
                continue
            expected = last.sequence if last is not None else 0
            return StrictPublisher(store, origin, state.id, expected, report)

    async def publish(self, delta: Delta) -> int:
        assert delta.origin == self._origin, "delta of another origin"
        async with self._lock:
            if self._end is not None:
                raise self._end
            try:
                return await self._publish(encode(delta), message_id(delta))
            except _FATAL as error:
                if not isinstance(error, MessageTooLargeError):
                    self._end = error
                raise

    async def _publish(self, data: bytes, wanted: str) -> int:
        pauses = _Pauses()
        while True:
            await self._store.ready()
            limit = self._store.max_payload - MESSAGE_OVERHEAD_BYTES
            if len(data) > limit:
                raise MessageTooLargeError(
                    f"map {self._origin.map}: a message is too large for the broker"
                    f" ({len(data)} bytes, {limit} fit)",
                    hint="raise max_payload in the broker's configuration",
                )
            try:
                if self._doubtful:
                    found = await self._find(wanted)
                    if found is not None:
                        self.counters.recovered += 1
                        return self._stored(found, len(data))
                sequence = await self._attempt(data, wanted)
                if sequence is not None:
                    return self._stored(sequence, len(data))
            except AttemptError as error:
                self.counters.errors += 1
                self.trouble = str(error)
                await pauses.next(error, self._report)

    async def _attempt(self, data: bytes, wanted: str) -> int | None:
        first = self._tried != wanted
        if not first:
            self.counters.resent += 1
        self._tried = wanted
        self._doubtful = True
        ack = await self._store.put(self._subject, data, wanted, self._expected)
        if not ack.duplicate:
            return ack.sequence
        found = None if first else await self._find(wanted)
        if found is None and not first and (await self._store.state()).first > ack.sequence:
            found = ack.sequence  # stored by an earlier attempt, and forgotten by the log since
        if found is None:
            self.counters.duplicates += 1
            raise DuplicateAckError(
                f"subject {self._subject}: message id {wanted} was used by somebody else",
                hint="find out who else may publish to the log's subjects",
            )
        self.counters.recovered += 1
        return found

    def _stored(self, sequence: int, size: int) -> int:
        self._expected = sequence
        self.trouble = ""
        self._doubtful = False
        self._own_stored = True
        self.counters.published += 1
        self.counters.bytes += size
        return sequence

    async def _find(self, wanted: str) -> int | None:
        """Where ``wanted`` is stored; ``None`` when it must be sent (again)."""
        last = await self._store.last(self._subject)
        if last is None:
            if self._expected:
                await self._check_log()
                self._expected = 0  # retention took our last message
            return None
        self._require(last.sequence)
        if last.message_id == wanted:
            return last.sequence
        if last.sequence == self._expected:
            return None
        if last.message_id == self._tried:  # its publish was cancelled, and it had arrived
            self._expected = last.sequence
            return None
        if not self._own_stored and self._takeovers < _TAKEOVERS_MAX:
            self._takeovers += 1  # an earlier instance still writes: the newer one wins
            self._expected = last.sequence
            return None
        raise FencedError(
            f"node {self._origin.node}: another instance publishes map {self._origin.map} under"
            f" this name (its message {last.sequence}, ours {self._expected})",
            hint="give every node its own name, and run one bridge per node",
        )

    async def _check_log(self) -> None:
        state = await self._store.state()
        if state.id != self._log_id:
            raise self._replaced()
        self._require(state.last)

    def _require(self, last: int) -> None:
        """The log holds what it has acknowledged, or is asked once more before that is given up."""
        if self._shorter.told(shorter=last < self._expected):
            raise self._replaced()
        if last < self._expected:
            raise AttemptError(f"the log ends at {last}, and had stored message {self._expected}")

    def _replaced(self) -> LogReplacedError:
        return LogReplacedError(
            f"log of {self._origin.cluster}: it was made anew, or lost messages that it had"
            f" acknowledged (subject {self._subject}, message {self._expected})"
        )


class _Pauses:
    """Growing pauses between attempts, and a report when they go on."""

    def __init__(self) -> None:
        self._failures = 0

    async def next(self, error: AttemptError, report: Callable[[str], None]) -> None:
        self._failures += 1
        if self._failures % _REPORT_AT == 0:
            report(f"publishing: {self._failures} failed attempts ({error}); trying again")
        pause = min(_PAUSE_SECONDS_MAX, _PAUSE_SECONDS_MIN * 2 ** min(self._failures - 1, 10))
        await asyncio.sleep(pause * random.uniform(0.5, 1.0))
