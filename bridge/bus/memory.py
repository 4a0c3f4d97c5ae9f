"""The bus without I/O, for tests and simulations: each node's way to a ``MemoryLog``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from bridge.bus.buffer import Raw
from bridge.bus.inbound import to_item
from bridge.bus.memory_log import MemoryLog
from bridge.bus.protocol import (
    Broken,
    BusClosedError,
    BusState,
    Gap,
    Item,
    LogReplacedError,
    LogState,
    SubscriptionCounters,
)
from bridge.bus.strict import Ack, AttemptError, Last, StrictPublisher
from bridge.model import Origin, Position
from bridge.wire.subjects import cluster_filter, map_filter

MAX_PAYLOAD = 1 << 20


class MemoryBus:
    """Implements ``Bus``: one node's connection to a ``MemoryLog``."""

    def __init__(
        self,
        log: MemoryLog,
        *,
        max_payload: int = MAX_PAYLOAD,
        report: Callable[[str], None] | None = None,
    ) -> None:
        self._log = log
        self._max_payload = max_payload
        self._report = report if report is not None else _ignore
        self._up = asyncio.Event()
        self._up.set()
        self._reconnects = 0
        self._closed = False
        self._subscriptions: list[MemorySubscription] = []

    @property
    def state(self) -> BusState:
        connected = self._up.is_set() and not self._closed
        return BusState(connected, self._reconnects, "memory", self._max_payload, "memory:")

    def disconnect(self) -> None:
        """Cut this node off; publishers wait, subscriptions stand still."""
        self._up.clear()

    def connect(self) -> None:
        if not self._up.is_set():
            self._reconnects += 1
            self._up.set()
            for subscription in self._subscriptions:
                subscription.wake()

    async def publisher(self, origin: Origin) -> StrictPublisher:
        return await StrictPublisher.open(_MemoryStore(self, self._log), origin, self._report)

    def subscribe(
        self, cluster: str, maps: Sequence[str], after: Position, *, log_id: str = ""
    ) -> MemorySubscription:
        if self._closed:
            raise BusClosedError("bus: is closed")
        filters = [map_filter(cluster, name) for name in maps] or [cluster_filter(cluster)]
        subscription = MemorySubscription(self, self._log, filters, after.sequence, log_id)
        self._subscriptions.append(subscription)
        return subscription

    async def log_state(self, cluster: str) -> LogState:
        del cluster
        await self.wait_connected()
        return self._log.state

    async def stored_at(self, cluster: str, sequence: int) -> int | None:
        del cluster
        await self.wait_connected()
        log = self._log
        if not log.first_sequence <= sequence <= log.last_sequence:
            return None
        return log.read(sequence).stored_at_ns

    async def close(self) -> None:
        self._closed = True
        self._up.set()
        for subscription in list(self._subscriptions):
            await subscription.close()

    async def wait_connected(self) -> None:
        await self._up.wait()
        if self._closed:
            raise BusClosedError("bus: is closed")

    def forget(self, subscription: MemorySubscription) -> None:
        self._subscriptions.remove(subscription)


class _MemoryStore:
    """A ``MemoryLog`` as ``strict.Store``, seen through one node's connection."""

    def __init__(self, bus: MemoryBus, log: MemoryLog) -> None:
        self._bus = bus
        self._log = log

    @property
    def max_payload(self) -> int:
        return self._bus.state.max_payload

    async def ready(self) -> None:
        await self._bus.wait_connected()

    async def put(self, subject: str, data: bytes, message_id: str, expected: int) -> Ack:
        self._need_connection()
        await asyncio.sleep(0)
        return self._log.attempt(subject, data, message_id, expected)

    async def last(self, subject: str) -> Last | None:
        self._need_connection()
        return self._log.last(subject)

    async def state(self) -> LogState:
        self._need_connection()
        return self._log.state

    def _need_connection(self) -> None:
        if not self._bus.state.connected:
            raise AttemptError("not connected")


class MemorySubscription:
    """Implements ``Subscription``; reads the log where it lies, so there is nothing to buffer."""

    def __init__(
        self, bus: MemoryBus, log: MemoryLog, filters: Sequence[str], after: int, log_id: str
    ) -> None:
        self.counters = SubscriptionCounters()
        self.trouble = ""
        self._bus = bus
        self._log = log
        self._patterns = [tuple(pattern.split(".")) for pattern in filters]
        self._position = after
        self._log_id = log_id
        self._closed = False
        self._wake = asyncio.Event()
        log.listen(self.wake)

    def __aiter__(self) -> MemorySubscription:
        return self

    async def __anext__(self) -> Item:
        while True:
            self._wake.clear()
            if self._closed:
                raise StopAsyncIteration
            if self._bus.state.connected:
                item = self._next()
                if item is not None:
                    return item
            await self._wake.wait()

    @property
    def pending(self) -> int:
        first = max(self._position + 1, self._log.first_sequence)
        return sum(self._mine(n) for n in range(first, self._log.last_sequence + 1))

    @property
    def read_up_to(self) -> int:
        return self._position

    @property
    def log_id(self) -> str:
        return self._log_id

    async def head(self) -> int:
        await self._bus.wait_connected()
        return self._log.last_sequence

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._log.unlisten(self.wake)
            self._bus.forget(self)
            self._wake.set()

    def wake(self) -> None:
        self._wake.set()

    def _next(self) -> Item | None:
        log = self._log
        if (self._log_id and self._log_id != log.id) or log.last_sequence < self._position:
            raise LogReplacedError(
                f"log {log.cluster}: it was made anew, or lost messages that had been read"
                f" (ends at {log.last_sequence}, read up to {self._position})"
            )
        self._log_id = log.id
        if log.first_sequence > self._position + 1:
            gap = Gap(self._position + 1, log.first_sequence - 1)
            self._position = gap.last_missing
            self.counters.gaps += 1
            return gap
        while self._position < log.last_sequence:
            self._position += 1
            if self._mine(self._position):
                return self._item(log.read(self._position))
        return None

    def _item(self, raw: Raw) -> Item:
        self.counters.received += 1
        self.counters.bytes += len(raw.data)
        item = to_item(raw.sequence, raw.stored_at_ns, raw.subject, raw.data)
        if isinstance(item, Broken):
            self.counters.broken += 1
        return item

    def _mine(self, sequence: int) -> bool:
        tokens = self._log.read(sequence).subject.split(".")
        return any(
            len(pattern) == len(tokens)
            and all(want in ("*", token) for want, token in zip(pattern, tokens, strict=True))
            for pattern in self._patterns
        )


def _ignore(text: str) -> None:
    del text
