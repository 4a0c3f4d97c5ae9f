"""A subscription that survives its consumers: each message of the log once, in order.

What it knows of the log is in its ``Marks``. The consumer's own server is believed in what it
sends, never in that there is no more: that is asked of the log's leader.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence

from bridge.bus.buffer import InboundBuffer, Raw
from bridge.bus.connection import Connection, end_task
from bridge.bus.consumer import DoubtError, OrderedConsumer
from bridge.bus.inbound import to_item
from bridge.bus.link import Link, RequestError
from bridge.bus.marks import Marks
from bridge.bus.protocol import (
    Broken,
    Gap,
    Item,
    LogReplacedError,
    LogState,
    LogUnavailableError,
    SubscriptionCounters,
    shared_pause,
)
from bridge.bus.shorter import Shorter
from bridge.bus.streams import (
    NO_LEADER,
    NO_MESSAGE,
    STREAM_NOT_FOUND,
    is_led,
    log_state,
    nanoseconds,
)
from bridge.errors import BridgeError, InvariantError
from bridge.wire.subjects import cluster_filter, map_filter, stream_name

BUFFER_BYTES_MAX = 24 << 20
_TICK_SECONDS = 1.0
_VERIFY_SECONDS_MIN = 5.0
_VERIFY_RATE_MAX = 50.0  # of all readers of a log together, a second
_PAUSE_SECONDS_MIN = 0.02
_PAUSE_SECONDS_MAX = 5.0
# In a row, while something is said to be pending: the leader is asked, the consumer given up.
_SILENT_TICKS_LOOK, _SILENT_TICKS_DOUBT = 2, 5
_MISSING_MAX = 7  # failures in a row with "no such stream" before it is believed
_REPORT_AT = 6


class NatsSubscription:
    """Implements ``Subscription``; one task of its own, ended by ``close``."""

    def __init__(
        self,
        connection: Connection,
        *,
        cluster: str,
        maps: Sequence[str],
        after: int,
        log_id: str,
        name: str,
        report: Callable[[str], None],
        on_close: Callable[[NatsSubscription], None],
        buffer_bytes_max: int = BUFFER_BYTES_MAX,
    ) -> None:
        self.counters = SubscriptionCounters()
        self.trouble = ""
        self.name = name
        self._connection = connection
        self._api = connection.settings.api_prefix
        self._stream = stream_name(cluster)
        self._filters = [map_filter(cluster, m) for m in maps] or [cluster_filter(cluster)]
        self._marks = Marks.behind_place(after)
        self._newest: Raw | None = None  # the last message that came, for its place and time
        self._log_id = log_id
        self._report = report
        self._on_close = on_close
        self._buffer_bytes_max = buffer_bytes_max
        self._buffer = InboundBuffer()
        self._consumer: OrderedConsumer | None = None
        self._missing = 0
        self._shorter = Shorter()
        self._received_before = -1  # at the last tick
        self._silent = 0
        self._readers = 0  # of this log, all nodes together
        self._opened = False
        self._closed = False
        self._task = asyncio.create_task(self._run(), name=f"bus-subscription-{name}")

    def __aiter__(self) -> NatsSubscription:
        return self

    async def __anext__(self) -> Item:
        raw = await self._buffer.take()
        consumer = self._consumer
        if consumer is not None and not consumer.attention.is_set() and consumer.may_pull():
            consumer.attention.set()
        if isinstance(raw, Gap):
            return raw
        item = to_item(raw.sequence, raw.stored_at_ns, raw.subject, raw.data)
        if isinstance(item, Broken):
            self.counters.broken += 1
        return item

    @property
    def pending(self) -> int:
        consumer = self._consumer
        waiting = len(self._buffer) + (0 if consumer is None else consumer.pending)
        return max(waiting, 1) if consumer is None or self._marks.behind else waiting

    @property
    def read_up_to(self) -> int:
        return self._marks.verified

    @property
    def log_id(self) -> str:
        return self._log_id

    async def head(self) -> int:
        pause = _PAUSE_SECONDS_MIN
        while True:
            link = await self._connection.link()
            try:
                return (await self._log_state(link)).last
            except (DoubtError, RequestError):
                await asyncio.sleep(pause)
                pause = min(pause * 2, _PAUSE_SECONDS_MAX)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        await end_task(self._task)
        self._buffer.discard()
        self._buffer.end()
        self._on_close(self)

    async def _run(self) -> None:
        failures = 0
        try:
            while not self._closed:
                link = await self._connection.link()
                consumer = OrderedConsumer(
                    link,
                    api=self._api,
                    stream=self._stream,
                    name=self.name,
                    filters=self._filters,
                    take=self._take,
                    room=self._room,
                )
                reason = self.trouble = await self._live(link, consumer)
                failures = 0 if consumer.consumed else failures + 1
                if failures and failures % _REPORT_AT == 0:
                    self._report(f"log {self._stream}: cannot be read ({reason}); trying again")
                pause = min(_PAUSE_SECONDS_MAX, _PAUSE_SECONDS_MIN * 2 ** min(failures, 10))
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))
        except BridgeError as error:
            self._buffer.end(error)
        except Exception as error:  # noqa: BLE001 - the reader must not wait for ever
            failure = InvariantError(f"log {self._stream}: reading failed ({error!r})")
            failure.__cause__ = error
            self._buffer.end(failure)

    async def _live(self, link: Link, consumer: OrderedConsumer) -> str:
        """One consumer's life; why it ended."""
        try:
            end = (await self._check_log(link)).last
            await self._check_newest(link)
            await self._look_ahead(link, end)
            await consumer.open(self._marks.received)
            self._silent = 0
            self.counters.recreated += self._opened
            self._opened = True
            self._consumer = consumer
            self.trouble = ""
            await self._keep(link, consumer)
        except (DoubtError, RequestError) as error:
            return str(error)
        except asyncio.CancelledError:
            self._consumer = None
            await consumer.close()
            await consumer.remove()
            raise
        finally:
            self._consumer = None
            await consumer.close()
        return consumer.reason

    async def _keep(self, link: Link, consumer: OrderedConsumer) -> None:
        """Requests, heartbeats and checks, until there is a doubt."""
        loop = asyncio.get_running_loop()
        next_tick = loop.time() + _TICK_SECONDS
        next_check = loop.time() + self._pause()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(next_tick):
                    await consumer.attention.wait()
            consumer.attention.clear()
            if consumer.doubted:
                return
            await consumer.pull()
            if loop.time() < next_tick:
                continue
            next_tick = loop.time() + _TICK_SECONDS
            consumer.tick()
            if self._silence() in (_SILENT_TICKS_LOOK, _SILENT_TICKS_DOUBT) or (
                loop.time() >= next_check
            ):
                await self._verify(link, consumer)
                next_check = loop.time() + self._pause()

    def _pause(self) -> float:
        return shared_pause(_VERIFY_SECONDS_MIN, self._readers, _VERIFY_RATE_MAX)

    async def _log_state(self, link: Link) -> LogState:
        reply = await link.call(f"{self._api}.STREAM.INFO.{self._stream}", {})
        if reply.error_code == STREAM_NOT_FOUND:
            self._missing += 1
            if self._missing > _MISSING_MAX:
                raise LogUnavailableError(
                    f"log {self._stream}: does not exist on the broker",
                    hint="a node makes it at its start; check the cluster's name",
                )
            raise DoubtError(reply.error)
        if reply.error_code or not is_led(reply):
            raise DoubtError(reply.error or NO_LEADER)
        self._missing = 0
        state = log_state(reply)
        self._readers = state.consumers
        return state

    async def _check_log(self, link: Link) -> LogState:
        """The log is still the one, and holds what comes next; else an error, or a gap."""
        received = self._marks.received
        state = await self._log_state(link)
        shorter = state.last < received
        lost = self._shorter.told(shorter=shorter)
        if (self._log_id and state.id != self._log_id) or lost:
            raise LogReplacedError(
                f"log {self._stream}: it was made anew, or lost messages that had been read"
                f" (ends at {state.last}, read up to {received})"
            )
        if shorter:
            raise DoubtError(f"it ends at {state.last}, and was read up to {received}")
        self._log_id = state.id
        gap = self._marks.begins(state.first)
        if gap is not None:
            self._buffer.put(gap)
            self.counters.gaps += 1
        return state

    async def _check_newest(self, link: Link) -> None:
        """The message that was read last is still the same one.

        A log that lost its end and grew again is as long as before, and holds others there.
        """
        newest = self._newest
        if newest is None:
            return
        reply = await link.call(
            f"{self._api}.STREAM.MSG.GET.{self._stream}", {"seq": newest.sequence}
        )
        stored = None if reply.error_code else nanoseconds(reply.text("message", "time"))
        if stored is not None and stored != newest.stored_at_ns:
            raise LogReplacedError(
                f"log {self._stream}: it lost messages that had been read, and holds others in"
                f" their place (message {newest.sequence})"
            )

    async def _look_ahead(self, link: Link, end: int) -> None:
        """What has to come before anybody may say that the log was read to its end.

        ``end``: of the log, asked for before. The last message of ours is asked for only where one
        is there that did not come: it is sent whole, and as a rule all did.
        """
        begin = {"seq": self._marks.unknown_from}
        last = 0
        for each in self._filters:
            if await self._place(link, begin | {"next_by_subj": each}):
                last = max(last, await self._place(link, {"last_by_subj": each}))
        self._marks.expect(last, end)

    async def _verify(self, link: Link, consumer: OrderedConsumer) -> None:
        """What the server of the consumer sends and counts must be what the leader holds."""
        marks, received = self._marks, self._marks.received
        state = await self._check_log(link)
        if marks.verified < state.last:
            await self._look_ahead(link, state.last)
        if marks.received != received:
            return
        if marks.behind and self._silent >= _SILENT_TICKS_DOUBT:
            consumer.doubt(f"message {marks.expected} is in the log, and does not come")
        elif not marks.behind and consumer.pending:
            consumer.doubt(f"its server counts {consumer.pending} messages that are not there")

    def _silence(self) -> int:
        """Ticks in which something was to come, there was room for it, and nothing came."""
        received = self._marks.received
        waits = self.pending > 0 and not len(self._buffer)
        self._silent = self._silent + 1 if waits and received == self._received_before else 0
        self._received_before = received
        return self._silent

    async def _place(self, link: Link, which: dict[str, object]) -> int:
        """Where the log's leader has a message; 0: there is none such."""
        reply = await link.call(f"{self._api}.STREAM.MSG.GET.{self._stream}", which)
        if reply.error_code == NO_MESSAGE:
            return 0
        if reply.error_code:
            raise DoubtError(reply.error)
        return reply.number("message", "seq")

    def _room(self) -> int:
        return self._buffer_bytes_max - self._buffer.bytes

    def _take(self, raw: Raw) -> None:
        self._marks.came(raw.sequence)
        self._newest = Raw(raw.sequence, raw.stored_at_ns, raw.subject, b"")
        self.counters.received += 1
        self.counters.bytes += len(raw.data)
        self._buffer.put(raw)
        self.counters.buffered_bytes_peak = self._buffer.bytes_peak
