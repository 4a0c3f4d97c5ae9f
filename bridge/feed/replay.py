"""History again: messages of the log at the pace at which they were stored, or faster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import Item, Received
from bridge.feed.log import items_until
from bridge.model import Position


async def history(
    bus: NatsBus, cluster: str, name: str, first: int, last: int, *, speed: float = 0.0
) -> AsyncIterator[Item]:
    """The messages of a map from sequence ``first`` to ``last``.

    ``speed``: how many times as fast as they were stored; 0: at once. A reader that is slower than
    that is not hurried: the pace counts from the first message and is taken up again when it can.
    """
    if last < first:
        return
    subscription = bus.subscribe(cluster, [name], Position(first - 1))
    began, stored = 0.0, 0
    try:
        async for item in items_until(subscription, last):
            if speed and isinstance(item, Received):
                if not stored:
                    began, stored = time.monotonic(), item.stored_at_ns
                due = began + (item.stored_at_ns - stored) / 1e9 / speed
                if (pause := due - time.monotonic()) > 0:
                    await asyncio.sleep(pause)
            yield item
    finally:
        await subscription.close()
