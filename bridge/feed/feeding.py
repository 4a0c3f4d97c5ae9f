"""One feed: reads the log as any consumer does, decodes, and publishes beside it.

It is a process of its own, so that capture never waits for it. The position is stored with what is
published (see ``bridge.bus.feeds``); while messages wait, those that fit are sent as one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bridge.bus.feeds import FeedPublisher, SourcePlace
from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import (
    MESSAGE_OVERHEAD_BYTES,
    MessageTooLargeError,
    Received,
)
from bridge.feed.encoders import Encoder, Kind, encoder_of
from bridge.feed.layouts import LayoutBook
from bridge.feed.pouring import FeedCounters, pour, whole_messages

MESSAGE_BYTES = 256 << 10  # of a feed's message, unless the broker takes less


class Feeder:
    """Publishes the changes of one map as one kind. ``run`` is a task of its owner."""

    def __init__(
        self,
        bus: NatsBus,
        cluster: str,
        map_name: str,
        kind: Kind,
        *,
        publisher: FeedPublisher,
        book: LayoutBook,
        report: Callable[[str], None],
    ) -> None:
        self.counters = FeedCounters()
        self.name = f"{map_name} {kind}"
        self._bus = bus
        self._cluster = cluster
        self._map = map_name
        self._publisher = publisher
        self._book = book
        self._report = report
        self._encoder: Encoder = encoder_of(kind)
        self._held: list[bytes] = []
        self._held_bytes = 0
        self._held_rows = 0
        self._layout = 0
        self._place: SourcePlace | None = None  # with what is held
        self.published: SourcePlace | None = None  # to be kept where the feeds' stream forgets
        self._undescribed_told = False
        self._in_flight: asyncio.Task[None] | None = None

    async def run(self, begin: SourcePlace, until: int | None) -> None:
        """Feed from ``begin``, if the stream of feeds does not know better; never ends by itself.

        With ``until``, ends when the log has been published up to that sequence.
        """
        place = await self._publisher.open() or begin
        await pour(self, self._bus, self._cluster, self._map, place, until, self._report)

    async def settle(self) -> None:
        await self._flush()
        await self._sent()

    async def begin_anew(self) -> None:
        await self._publisher.open()  # whether what was on its way is stored, nobody knows

    async def forget(self) -> None:
        self._drop()
        sending, self._in_flight = self._in_flight, None
        if sending is not None:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)

    async def take(self, item: Received, skipped: int, log: str) -> None:
        delta, counters = item.delta, self.counters
        counters.read += 1
        layout = await self._book.of(delta)
        if not self._encoder.takes(layout):
            counters.undescribed += len(delta.batch)
            if not self._undescribed_told:
                self._undescribed_told = True
                self._report(f"feed {self.name}: changes without a known layout are left out")
            return
        number = 0 if layout is None else delta.layout
        if number != self._layout:
            await self._flush()
            self._layout = number
        size_max = min(MESSAGE_BYTES, self._bus.state.max_payload - MESSAGE_OVERHEAD_BYTES)
        done = skipped
        for rows, data in self._encoder.pieces(delta, layout, item.sequence, skipped, size_max):
            if len(data) > self._bus.state.max_payload - MESSAGE_OVERHEAD_BYTES:
                raise MessageTooLargeError(
                    f"feed {self.name}: one change does not fit a message of the broker "
                    f"({len(data)} bytes)",
                    hint="raise max_payload in the broker's configuration",
                )
            if self._held and self._held_bytes + len(data) > size_max:
                await self._flush()
            self._held.append(data)
            self._held_bytes += len(data)
            self._held_rows += rows
            done += rows
            whole = done == len(delta.batch)
            self._place = SourcePlace(log, item.sequence, 0 if whole else done)

    async def _flush(self) -> None:
        """Send what is held; one message is on its way at a time, while the next is made."""
        if not self._held:
            return
        assert self._place is not None
        await self._sent()
        sending = self._send(b"".join(self._held), self._place, self._layout, self._held_rows)
        self._in_flight = asyncio.create_task(sending, name=f"feed {self.name}")
        self._drop()
        await asyncio.sleep(0)  # lets it begin

    async def _sent(self) -> None:
        """Wait until nothing is on its way."""
        sending, self._in_flight = self._in_flight, None
        if sending is not None:
            await sending

    async def _send(self, data: bytes, place: SourcePlace, layout: int, rows: int) -> None:
        await self._publisher.publish(data, place, layout)
        counters = self.counters
        counters.messages += 1
        counters.bytes += len(data)
        counters.changes += rows
        counters.position = whole_messages(place)
        self.published = place

    def _drop(self) -> None:
        self._held, self._held_bytes, self._held_rows = [], 0, 0
