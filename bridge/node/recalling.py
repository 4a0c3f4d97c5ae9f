"""What the stream holds of a map by this node, for a node that publishes and applies nothing.

A map that lived on while its bridge was away may have lost keys meanwhile. Only who knows what the
stream still holds of them can publish that they are gone. What other nodes wrote does not count:
nothing of it is in this map.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.bus.protocol import Broken, Gap, Item, Received, Subscription
from bridge.model import DeltaBatch, Position
from bridge.node.following import StreamCounters
from bridge.node.services import Services

POLL_SECONDS = 0.02


class Recaller:
    """Of a map that was bridged before, learns what the stream holds by this node.

    Of a map that was made anew all is published that it holds, and what the old one held stays
    with the others.
    """

    def __init__(self, name: str, services: Services) -> None:
        self.counters = StreamCounters()
        self._name = name
        self._services = services

    async def recall(self, map_id: int, take: Callable[[DeltaBatch], None]) -> str:
        """``take`` gets what was found, in order. The answer is the id of the log."""
        services, name = self._services, self._name
        log = await services.bus.log_state(services.cluster)
        if services.positions.of(name, map_id, log.id) is None:
            return log.id
        subscription = services.bus.subscribe(services.cluster, [name], Position(0), log_id=log.id)
        try:
            found = await _read_own(subscription, services.node, take, self._note_trouble)
        finally:
            await subscription.close()
        services.report.say(
            "the map lived on: it publishes what changed here", map=name, messages=found
        )
        return log.id

    def _note_trouble(self, item: Item) -> None:
        match item:
            case Broken():
                self.counters.broken += 1
                self._services.report.warn_once(
                    "message skipped", subject=item.subject, reason=item.reason
                )
            case Gap():
                self.counters.gaps += 1
                self._services.report.warn(
                    "messages expired before they were read",
                    map=self._name,
                    first=item.first_missing,
                    last=item.last_missing,
                )


async def _read_own(
    subscription: Subscription,
    node: str,
    take: Callable[[DeltaBatch], None],
    other: Callable[[Item], None],
) -> int:
    """Read up to the end of the log; how many messages of ``node`` there were.

    ``take`` gets their batches in order, ``other`` what is no message. Whoever publishes for the
    node has been fenced before, so that none can follow.
    """
    found = 0
    reading = asyncio.ensure_future(anext(subscription))
    try:
        while True:
            await asyncio.wait({reading}, timeout=POLL_SECONDS)
            if not reading.done():
                if subscription.pending == 0:
                    return found
                continue
            item = reading.result()
            reading = asyncio.ensure_future(anext(subscription))
            if not isinstance(item, Received):
                other(item)
            elif item.delta.origin.node == node:
                take(item.delta.batch)
                found += 1
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
