"""From the outbox to the log: one message in flight, the next one growing meanwhile.

A busy map's messages are at least ``COMPANY_SECONDS`` apart. Where the round trip takes longer than
that, as it does at full load, nothing is held back.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass, field

from bridge.bus.outbox import Outbox
from bridge.bus.protocol import MESSAGE_OVERHEAD_BYTES, MessageTooLargeError, Publisher
from bridge.model import Delta, Origin
from bridge.wire.codec import row_bytes

ROWS_PER_MESSAGE_MAX = 1 << 18
# From this rate on a message waits for company, so that the next one is sent no sooner than so long
# after the one before: each costs all processes on its way about as much as a thousand changes.
COMPANY_RATE = 20_000  # changes per second
COMPANY_SECONDS = 0.002
DURATIONS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0)  # seconds
_BUCKETS = (*map(str, DURATIONS), "+Inf")


@dataclass(frozen=True, slots=True)
class Acked:
    """Changes ``first_sequence``..``last_sequence`` of an origin are stored in the log."""

    origin: Origin
    first_sequence: int
    last_sequence: int
    sequence: int  # of the message, in the log
    seconds: float  # from the first attempt to the acknowledgement


@dataclass(slots=True)
class PublishCounters:
    """What a loop did; every number only grows."""

    messages: int = 0
    changes: int = 0
    seconds: float = 0.0  # spent waiting for acknowledgements
    rows_peak: int = 0  # most changes in one message
    held: int = 0  # times that a message waited for company
    # Messages by the seconds that they waited: above the bound before, at most this one.
    durations: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_BUCKETS, 0))


def _no_offset() -> int:
    return time.time_ns() - time.monotonic_ns()


def _ignore(acked: Acked) -> None:
    del acked


def rows_per_message(map_name: str, key_size: int, value_size: int, max_payload: int) -> int:
    """How many changes are sure to fit one message; raises ``MessageTooLargeError`` for none."""
    room = max_payload - MESSAGE_OVERHEAD_BYTES
    rows = room // row_bytes(key_size, value_size)
    if rows < 1:
        raise MessageTooLargeError(
            f"map {map_name}: one change does not fit a message of the broker"
            f" ({row_bytes(key_size, value_size)} bytes, {max(room, 0)} fit)",
            hint="raise max_payload in the broker's configuration (1 MiB fits every map)",
        )
    return min(rows, ROWS_PER_MESSAGE_MAX)


class PublishLoop:
    """Publishes one origin's outbox; ``run`` is a task of its owner."""

    def __init__(
        self,
        origin: Origin,
        outbox: Outbox,
        publisher: Publisher,
        max_payload: Callable[[], int],
        *,
        layout: int = 0,
        clock_offset_ns: Callable[[], int] = _no_offset,
        on_ack: Callable[[Acked], None] = _ignore,
    ) -> None:
        self.counters = PublishCounters()
        self.sent = 0  # own sequence of the last change that was sent at least once
        self.stored = 0  # own sequence of the last change that is stored
        self._origin = origin
        self._outbox = outbox
        self._publisher = publisher
        self._max_payload = max_payload
        self._layout = layout
        self._clock_offset_ns = clock_offset_ns
        self._on_ack = on_ack
        self._in_flight: Delta | None = None
        self._began = 0.0  # when the last message was sent, time.monotonic
        self._busy = False  # whether changes came at COMPANY_RATE or faster then
        self._finished = asyncio.Event()
        self._rows_per_message()  # refuses a map that cannot be published, before it starts

    @property
    def trouble(self) -> str:
        """Why nothing is stored now, empty while all is well."""
        return self._publisher.trouble

    @property
    def in_flight(self) -> int:
        """Changes that were taken from the outbox and are not known to be stored."""
        return len(self._in_flight.batch) if self._in_flight is not None else 0

    async def run(self) -> None:
        """Publish until the outbox is closed and empty, or until cancelled.

        After a cancellation ``run`` can be called again: the message in flight is kept, and is
        stored once.
        """
        while True:
            if self._in_flight is None:
                self._in_flight = self._next()
            if self._in_flight is None:
                if self._outbox.closed:
                    self._finished.set()
                    return
                await self._outbox.wait()
                await self._company()
                continue
            await self._publish(self._in_flight)
            self._in_flight = None
            await self._company()

    async def drain(self, deadline_seconds: float) -> int:
        """Close the outbox and wait for ``run`` to empty it; changes that are left at the end."""
        self._outbox.close()
        try:
            async with asyncio.timeout(deadline_seconds):
                await self._finished.wait()
        except TimeoutError:
            return self._outbox.statistics().rows + self.in_flight
        return 0

    async def _company(self) -> None:
        """Under load, let the next message grow; a full one goes at once."""
        left = self._began + COMPANY_SECONDS - time.monotonic()
        if not self._busy or left <= 0 or self._outbox.closed:
            return
        if self._outbox.statistics().rows < self._rows_per_message():
            self.counters.held += 1
            await asyncio.sleep(left)

    def _rows_per_message(self) -> int:
        outbox = self._outbox
        return rows_per_message(
            self._origin.map, outbox.key_size, outbox.value_size, self._max_payload()
        )

    def _next(self) -> Delta | None:
        # Asked each time: the next broker may have another limit.
        taken = self._outbox.take(self._rows_per_message())
        if taken is None:
            return None
        first_sequence, batch = taken
        return Delta(self._origin, first_sequence, batch, self._clock_offset_ns(), self._layout)

    async def _publish(self, delta: Delta) -> None:
        began = time.monotonic()
        self._busy = len(delta.batch) >= COMPANY_RATE * (began - self._began)
        self._began = began
        self.sent = delta.last_sequence
        sequence = await self._publisher.publish(delta)
        seconds = time.monotonic() - began
        self.stored = delta.last_sequence
        counters = self.counters
        counters.messages += 1
        counters.changes += len(delta.batch)
        counters.seconds += seconds
        counters.durations[_BUCKETS[bisect_left(DURATIONS, seconds)]] += 1
        counters.rows_peak = max(counters.rows_peak, len(delta.batch))
        self._on_ack(
            Acked(self._origin, delta.first_sequence, delta.last_sequence, sequence, seconds)
        )
