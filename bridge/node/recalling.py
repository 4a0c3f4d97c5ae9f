"""What the stream holds of a map by this node, for a node that publishes and applies nothing.

A map that lived on while its bridge was away may have lost keys meanwhile. Only who knows what the
stream still holds of them can publish that they are gone. What other nodes wrote does not count:
nothing of it is in this map.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.bus.protocol import Item, Received, Subscription
from bridge.model import DeltaBatch

POLL_SECONDS = 0.02


async def recall_own(
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
