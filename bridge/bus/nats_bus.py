"""The bus over JetStream."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Sequence

from nats import errors as nats_errors

from bridge.bus.connection import BusSettings, Connection
from bridge.bus.link import ForbiddenError, Link, Reply, RequestError, stored_header
from bridge.bus.protocol import (
    MESSAGE_OVERHEAD_BYTES,
    BusClosedError,
    BusState,
    LogState,
    LogUnavailableError,
    MessageTooLargeError,
)
from bridge.bus.streams import (
    NO_LEADER,
    NO_MESSAGE,
    STREAM_NOT_FOUND,
    LogReport,
    LogSettings,
    ensure_log,
    is_led,
    log_state,
    nanoseconds,
)
from bridge.bus.strict import Ack, AttemptError, Last, StrictPublisher
from bridge.bus.subscription import BUFFER_BYTES_MAX, NatsSubscription
from bridge.model import Origin, Position
from bridge.wire.subjects import (
    HEADER_EXPECTED_LAST,
    HEADER_MESSAGE_ID,
    HEADER_VERSION,
    WIRE_VERSION,
    stream_name,
)

_TOO_LARGE = 10054
_MISSING_MAX = 20  # failures in a row with "no such stream" before it is believed
_PAUSE_SECONDS = 0.2
_REPORT_AT = 25  # failed requests before the first report, then each time as many more


def _ignore(text: str) -> None:
    del text


async def open_bus(settings: BusSettings, report: Callable[[str], None] = _ignore) -> NatsBus:
    """Connect, for as long as it takes; ``report`` gets a sentence when there is trouble.

    Raises ``BrokerRefusedError``, ``BrokerTooOldError``, ``LogUnavailableError``.
    """
    connection = Connection(settings, report)
    await connection.open()
    return NatsBus(connection, report)


class NatsBus:
    """Implements ``Bus``."""

    def __init__(self, connection: Connection, report: Callable[[str], None]) -> None:
        self._connection = connection
        self._report = report
        self._subscriptions: list[NatsSubscription] = []
        self._closed = False
        # Whoever may make consumers may change one whose name is known, and cut what it reads.
        self._unguessable = secrets.token_hex(8)

    @property
    def state(self) -> BusState:
        return self._connection.state

    @property
    def api_prefix(self) -> str:
        """Where the JetStream API answers."""
        return self._connection.settings.api_prefix

    @property
    def link_now(self) -> Link | None:
        """The present connection; ``None`` while there is none."""
        return self._connection.link_now

    async def link(self) -> Link:
        """The present connection, for requests beyond the contract; waits for one."""
        return await self._connection.link()

    async def ensure_log(self, cluster: str, settings: LogSettings) -> LogReport:
        """Make the cluster's log, or check it; see ``streams.ensure_log``."""
        api = self._connection.settings.api_prefix
        while True:
            link = await self._connection.link()
            try:
                return await ensure_log(link, api, cluster, settings, self._report)
            except ForbiddenError:
                raise
            except RequestError as error:
                self._report(str(error))

    async def publisher(self, origin: Origin) -> StrictPublisher:
        store = _NatsStore(self._connection, origin.cluster)
        return await StrictPublisher.open(store, origin, self._report)

    def subscribe(
        self,
        cluster: str,
        maps: Sequence[str],
        after: Position,
        *,
        log_id: str = "",
        buffer_bytes_max: int = BUFFER_BYTES_MAX,
    ) -> NatsSubscription:
        if self._closed:
            raise BusClosedError("bus: is closed")
        subscription = NatsSubscription(
            self._connection,
            cluster=cluster,
            maps=maps,
            after=after.sequence,
            log_id=log_id,
            name=self._free_name(),
            report=self._report,
            on_close=self._subscriptions.remove,
            buffer_bytes_max=buffer_bytes_max,
        )
        self._subscriptions.append(subscription)
        return subscription

    async def log_state(self, cluster: str) -> LogState:
        store = _NatsStore(self._connection, cluster)
        failures = 0
        while True:
            await store.ready()
            try:
                return await store.state()
            except AttemptError as error:
                _check_allowed(error)
                failures += 1
                if failures % _REPORT_AT == 0:
                    self._report(f"log {stream_name(cluster)}: {error}; trying again")
                await asyncio.sleep(_PAUSE_SECONDS)

    async def stored_at(self, cluster: str, sequence: int) -> int | None:
        store = _NatsStore(self._connection, cluster)
        while True:
            await store.ready()
            try:
                return await store.stored_at(sequence)
            except AttemptError as error:
                _check_allowed(error)
                await asyncio.sleep(_PAUSE_SECONDS)

    async def close(self) -> None:
        self._closed = True
        for subscription in list(self._subscriptions):
            await subscription.close()
        await self._connection.close()

    def _free_name(self) -> str:
        taken = {subscription.name for subscription in self._subscriptions}
        base = name = f"mapbridge-{self._connection.settings.node}-{self._unguessable}"
        number = 1
        while name in taken:
            number += 1
            name = f"{base}-{number}"
        return name


class _NatsStore:
    """One cluster's log as ``strict.Store``."""

    def __init__(self, connection: Connection, cluster: str) -> None:
        self._connection = connection
        self._api = connection.settings.api_prefix
        self._stream = stream_name(cluster)
        self._missing = 0

    @property
    def max_payload(self) -> int:
        return self._connection.state.max_payload

    async def ready(self) -> None:
        await self._connection.link()

    async def put(self, subject: str, data: bytes, message_id: str, expected: int) -> Ack:
        headers = {
            HEADER_MESSAGE_ID: message_id,
            HEADER_EXPECTED_LAST: str(expected),
            HEADER_VERSION: WIRE_VERSION,
        }
        try:
            link = self._link()
            if len(data) + MESSAGE_OVERHEAD_BYTES > link.max_payload:
                # The broker would answer by closing the connection.
                raise AttemptError("the broker's limit has shrunk")
            reply = Reply((await link.request(subject, data, headers)).data)
        except RequestError as error:
            if error.no_responder:
                await self.state()  # raises when it is the log that is missing
            raise AttemptError(str(error)) from error
        except nats_errors.Error as error:
            raise AttemptError(str(error)) from error
        if reply.error_code == _TOO_LARGE:
            raise MessageTooLargeError(
                f"log {self._stream}: refuses a message of {len(data)} bytes",
                hint=f"raise max_msg_size of stream {self._stream}",
            )
        if reply.error_code:
            raise AttemptError(reply.error)
        sequence = reply.number("seq")
        if reply.text("stream") != self._stream or sequence < 1:
            raise AttemptError(f"stored in another place ({reply.text('stream')!r})")
        return Ack(sequence, reply.body.get("duplicate") is True)

    async def last(self, subject: str) -> Last | None:
        reply = await self._call(f"{self._api}.STREAM.MSG.GET.{self._stream}", last_by_subj=subject)
        if reply.error_code == NO_MESSAGE:
            return None
        if reply.error_code:
            raise AttemptError(reply.error)
        headers = reply.text("message", "hdrs")
        return Last(reply.number("message", "seq"), stored_header(headers, HEADER_MESSAGE_ID))

    async def stored_at(self, sequence: int) -> int | None:
        reply = await self._call(f"{self._api}.STREAM.MSG.GET.{self._stream}", seq=sequence)
        if reply.error_code in (NO_MESSAGE, STREAM_NOT_FOUND):
            return None
        if reply.error_code:
            raise AttemptError(reply.error)
        return nanoseconds(reply.text("message", "time"))

    async def state(self) -> LogState:
        reply = await self._call(f"{self._api}.STREAM.INFO.{self._stream}")
        if reply.error_code == STREAM_NOT_FOUND:
            self._missing += 1
            if self._missing > _MISSING_MAX:
                raise LogUnavailableError(
                    f"log {self._stream}: does not exist on the broker",
                    hint="a node makes it at its start; check the cluster's name",
                )
        if reply.error_code or not is_led(reply):
            raise AttemptError(reply.error or NO_LEADER)
        self._missing = 0
        return log_state(reply)

    async def _call(self, subject: str, **body: object) -> Reply:
        try:
            return await self._link().call(subject, body)
        except RequestError as error:
            raise AttemptError(str(error)) from error

    def _link(self) -> Link:
        link = self._connection.link_now
        if link is None:
            raise AttemptError("not connected")
        return link


def _check_allowed(error: AttemptError) -> None:
    """Raises ``ForbiddenError`` when the attempt failed for want of a permission."""
    if isinstance(error.__cause__, ForbiddenError):
        raise error.__cause__


__all__ = ["BusSettings", "LogSettings", "NatsBus", "open_bus"]
