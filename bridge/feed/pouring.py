"""From the log into a sink: one map's messages in order, from a place on.

Invariant: a sink is given each change behind the place that it had reached, once and in order, and
what it holds unsent is forgotten when the log that it came from is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bridge.bus.feeds import SourcePlace
from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import Broken, Gap, Item, LogReplacedError, Received
from bridge.feed.log import items_until
from bridge.model import Position


@dataclass(slots=True)
class FeedCounters:
    """What one feed did; every number only grows."""

    read: int = 0  # messages of the log
    changes: int = 0  # published
    messages: int = 0  # published
    bytes: int = 0
    undescribed: int = 0  # changes without a layout, which a typed feed cannot carry
    broken: int = 0
    gaps: int = 0
    refused: int = 0  # attempts that a collector did not take; each was made again
    position: int = 0  # in the log: everything up to there is published


class Sink(Protocol):
    """Where changes go."""

    name: str
    counters: FeedCounters
    published: SourcePlace | None  # how far it has come

    async def take(self, item: Received, skipped: int, log: str) -> None:
        """Take a message of that log, without its first ``skipped`` rows; may hold it back."""

    async def settle(self) -> None:
        """Send what is held back; returns when nothing is on its way."""

    async def forget(self) -> None:
        """Let go of what is held back or on its way."""

    async def begin_anew(self) -> None:
        """After ``forget``: get ready for what comes from another log."""


async def pour(
    sink: Sink,
    bus: NatsBus,
    cluster: str,
    map_name: str,
    begin: SourcePlace,
    until: int | None,
    report: Callable[[str], None],
) -> None:
    """Feed ``sink`` from ``begin`` on, up to sequence ``until``; ``None``: until cancelled.

    A log that was made anew is read from its beginning.
    """
    place = begin
    while True:
        sink.published = place
        sink.counters.position = done = whole_messages(place)
        if until is not None and done >= until:
            return
        position = Position(max(done, 0))
        subscription = bus.subscribe(cluster, [map_name], position, log_id=place.log)
        try:
            async for item in items_until(subscription, until):
                if isinstance(item, Received):
                    skipped = place.rows if item.sequence == place.sequence else 0
                    await sink.take(item, skipped, subscription.log_id)
                else:
                    _note(sink, item, report)
                if subscription.pending == 0:
                    await sink.settle()
            await sink.settle()
            return
        except LogReplacedError as error:
            report(f"feed {sink.name}: {error}; it begins with the new log")
        finally:
            await sink.forget()
            await subscription.close()
        await sink.begin_anew()
        place = SourcePlace((await bus.log_state(cluster)).id, 0)


def whole_messages(place: SourcePlace) -> int:
    """The sequence up to which ``place`` holds messages whole."""
    return place.sequence - (place.rows > 0)


def _note(sink: Sink, item: Item, report: Callable[[str], None]) -> None:
    match item:
        case Broken():
            sink.counters.broken += 1
            report(f"feed {sink.name}: a message was skipped: {item.reason}")
        case Gap():
            sink.counters.gaps += 1
            report(
                f"feed {sink.name}: messages {item.first_missing} to {item.last_missing} "
                "expired before they were read"
            )
