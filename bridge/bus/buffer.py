"""What a subscription has received and nobody has taken yet: bounded by whoever fills it."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from bridge.bus.protocol import Gap
from bridge.errors import BridgeError


@dataclass(frozen=True, slots=True)
class Raw:
    """A message as it came."""

    sequence: int
    stored_at_ns: int
    subject: str
    data: bytes


class InboundBuffer:
    """A queue for one reader, with its bytes counted and an end that may be an error."""

    def __init__(self) -> None:
        self._items: deque[Raw | Gap] = deque()
        self._wake = asyncio.Event()
        self._ended = False
        self._error: BridgeError | None = None
        self.bytes = 0
        self.bytes_peak = 0

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Raw | Gap) -> None:
        self._items.append(item)
        if isinstance(item, Raw):
            self.bytes += len(item.data)
            self.bytes_peak = max(self.bytes_peak, self.bytes)
        self._wake.set()

    def end(self, error: BridgeError | None = None) -> None:
        """No more will come; the reader gets what is there, then the error or the end."""
        if not self._ended:
            self._ended = True
            self._error = error
        self._wake.set()

    def discard(self) -> None:
        self._items.clear()
        self.bytes = 0

    async def take(self) -> Raw | Gap:
        """The oldest item; raises the error of ``end``, or ``StopAsyncIteration``."""
        while not self._items:
            if self._error is not None:
                raise self._error
            if self._ended:
                raise StopAsyncIteration
            self._wake.clear()
            await self._wake.wait()
        item = self._items.popleft()
        if isinstance(item, Raw):
            self.bytes -= len(item.data)
        return item
