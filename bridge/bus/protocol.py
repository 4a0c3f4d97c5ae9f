"""The seam between a node and the log: one total order of messages per cluster.

Two implementations keep this contract, held by one shared test suite: ``NatsBus`` (JetStream) and
``MemoryBus`` (same semantics, no I/O). All methods belong to the event loop's thread.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bridge.errors import BridgeError, Exit, InvariantError, UnavailableError
from bridge.model import Delta, Origin, Position

MESSAGE_OVERHEAD_BYTES = 4096  # of max_payload, kept free for headers and the message's own fields


class BusClosedError(UnavailableError):
    """The bus was closed under the caller."""


class LogUnavailableError(UnavailableError):
    """The broker answered, but the log cannot be used: no JetStream, no stream, no permission."""


class BrokerTooOldError(UnavailableError):
    """The broker lacks what the bridge needs (2.10 is the oldest that does not ignore filters)."""


class BrokerRefusedError(BridgeError):
    """The broker turned the bridge away: wrong credentials, wrong certificate."""

    exit_code = Exit.CONFIG


class BrokerSettingsError(BridgeError):
    """The way to the broker cannot be right: an address or a file that makes no sense."""

    exit_code = Exit.CONFIG


class AwayError(UnavailableError):
    """The broker cannot be used now; it may be in a while."""


class FencedError(BridgeError):
    """Somebody else publishes under this node's name; this instance must not go on."""

    exit_code = Exit.FAILURE


class DuplicateAckError(InvariantError):
    """The log called a first attempt a duplicate: somebody else used our message id."""


class MessageTooLargeError(BridgeError):
    """A message, or a map's single row, does not fit the broker's limit."""

    exit_code = Exit.CONFIG


class LogReplacedError(BridgeError):
    """The log was made anew or went backwards: positions in it mean nothing any more.

    The node must start a new incarnation and resynchronise from a snapshot or from its peers.
    """

    exit_code = Exit.TEMPORARY


def shared_pause(seconds_min: float, readers: int, rate_max: float) -> float:
    """Seconds until a reader's next question, so that all ``readers`` ask ``rate_max`` a second.

    A third more or less by chance, so that nodes that were started together do not ask together.
    """
    return max(seconds_min, readers / rate_max) * random.uniform(0.7, 1.3)


@dataclass(frozen=True, slots=True)
class BusState:
    """The connection as it is now, for health and metrics."""

    connected: bool
    reconnects: int
    server_version: str
    max_payload: int
    url: str
    trouble: str = ""  # why it is not connected


@dataclass(frozen=True, slots=True)
class LogState:
    """The log of a cluster. ``id`` changes when the log is made anew; save it with a position."""

    id: str
    first: int
    last: int
    messages: int
    bytes: int
    bytes_max: int = 0  # what it may hold before it forgets the oldest; 0: no limit
    age_seconds_max: float = 0.0
    consumers: int = 0  # all readers together, of whatever map


@dataclass(frozen=True, slots=True)
class Received:
    """A message that is what its subject says. The batch's columns are read-only."""

    sequence: int
    stored_at_ns: int  # the server's CLOCK_REALTIME when it stored the message
    delta: Delta


@dataclass(frozen=True, slots=True)
class Broken:
    """A message that cannot be used; it was skipped, and whoever sent it lost its content."""

    sequence: int
    subject: str
    reason: str


@dataclass(frozen=True, slots=True)
class Gap:
    """The log no longer holds the messages ``first_missing``..``last_missing``.

    Retention removed them before they were read; some may have been ours to apply. What they held
    must come from a snapshot.
    """

    first_missing: int
    last_missing: int


Item = Received | Broken | Gap


@dataclass(slots=True)
class PublisherCounters:
    """What a publisher met; every number only grows."""

    published: int = 0  # messages stored
    bytes: int = 0
    resent: int = 0  # messages sent again after an error
    recovered: int = 0  # messages found stored after their acknowledgement was lost
    errors: int = 0  # failed attempts
    duplicates: int = 0  # first attempts called duplicates: an alarm


@dataclass(slots=True)
class SubscriptionCounters:
    """What a subscription met; every number only grows."""

    received: int = 0
    bytes: int = 0
    broken: int = 0
    gaps: int = 0  # ranges that retention took before they were read
    recreated: int = 0  # consumers made anew after a doubt (the first one does not count)
    buffered_bytes_peak: int = 0


class Publisher(Protocol):
    """Publishes the messages of one origin, one in flight, in the order of the calls."""

    counters: PublisherCounters

    @property
    def trouble(self) -> str:
        """Why the log does not take what is being published, empty while it does."""

    async def publish(self, delta: Delta) -> int:
        """Store ``delta``; its sequence in the log. Returns only when it is stored, exactly once.

        Tries for as long as the connection is away, until cancelled. After a cancellation the
        message may or may not be stored; calling again with the same ``delta`` finds out.

        Raises ``FencedError``, ``DuplicateAckError``, ``LogReplacedError``, after which this
        publisher is of no more use; ``LogUnavailableError`` when there is no log;
        ``MessageTooLargeError``, ``BusClosedError``.
        """


class Subscription(Protocol):
    """The messages of some maps in the log's order, each exactly once, across any failure.

    Iteration ends after ``close``. It raises ``LogReplacedError`` when positions lost their
    meaning, ``LogUnavailableError`` when the log is gone.
    """

    counters: SubscriptionCounters

    @property
    def trouble(self) -> str:
        """Why the log cannot be read now, empty while it can."""

    def __aiter__(self) -> AsyncIterator[Item]: ...

    async def __anext__(self) -> Item: ...

    @property
    def pending(self) -> int:
        """Messages known to be in the log and not yet handed out; 1 while nothing is known."""

    @property
    def read_up_to(self) -> int:
        """Everything of these maps up to this sequence was received, over all subjects."""

    @property
    def log_id(self) -> str:
        """``LogState.id`` of the log that is read, empty before the first contact."""

    async def head(self) -> int:
        """The last sequence of the log now, over all subjects; waits while disconnected."""

    async def close(self) -> None: ...


class Bus(Protocol):
    """A connection to the log of one or more clusters."""

    @property
    def state(self) -> BusState: ...

    async def publisher(self, origin: Origin) -> Publisher:
        """A publisher that knows its subject's last message and fences earlier instances."""

    def subscribe(
        self, cluster: str, maps: Sequence[str], after: Position, *, log_id: str = ""
    ) -> Subscription:
        """The messages of ``maps`` (all nodes, one's own too) behind ``after``.

        No maps means all maps. ``log_id`` is what was saved with ``after``: a log with another id
        raises ``LogReplacedError`` from the iteration.
        """

    async def log_state(self, cluster: str) -> LogState:
        """The log now; waits while disconnected."""

    async def stored_at(self, cluster: str, sequence: int) -> int | None:
        """When the log stored a message, by the server's clock in ns; ``None``: it is gone.

        A place that was given to another message since has another time.
        """

    async def close(self) -> None: ...
