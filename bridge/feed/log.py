"""Reading the log up to its end, for commands that do not wait for what comes later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from bridge.bus.protocol import Gap, Item, Subscription

_LOOK_SECONDS = 0.05


async def items_until(subscription: Subscription, last: int | None) -> AsyncIterator[Item]:
    """Items up to sequence ``last`` of the log, which must be there; ``None``: for ever."""
    while True:
        item = await _next(subscription, wait=last is None)
        if item is None:
            return
        sequence = item.first_missing if isinstance(item, Gap) else item.sequence
        if last is not None and sequence > last:
            return
        yield item


async def _next(subscription: Subscription, *, wait: bool) -> Item | None:
    """The next item; ``None`` when the log has no more for this subscription, or it was closed."""
    task = asyncio.ensure_future(anext(subscription, None))
    try:
        while not wait and not task.done():
            await asyncio.wait({task}, timeout=_LOOK_SECONDS)
            if not task.done() and subscription.pending == 0:
                return None
        return await task
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
