"""The stream of snapshots over JetStream."""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import secrets
from collections.abc import AsyncGenerator

from nats import errors as nats_errors

from bridge.bus.buffer import InboundBuffer, Raw
from bridge.bus.consumer import REQUEST_BYTES_MIN, DoubtError, OrderedConsumer
from bridge.bus.link import Link, Reply, RequestError
from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import MESSAGE_OVERHEAD_BYTES
from bridge.bus.snapshots import SnapshotConflictError, SnapshotStoreError, Stored
from bridge.bus.streams import NO_MESSAGE, STREAM_NOT_FOUND, LogSettings
from bridge.wire.subjects import HEADER_EXPECTED_LAST, snapshot_stream_name, snapshots_filter

_WRONG_LAST = 10071
_BUFFER_BYTES_MAX = 2 * REQUEST_BYTES_MIN
_SILENCE_SECONDS_MAX = 15.0


class NatsSnapshotStore:
    """Implements ``SnapshotStore``; makes the stream when it is missing."""

    def __init__(self, bus: NatsBus, cluster: str, settings: LogSettings, node: str) -> None:
        self._bus = bus
        self._cluster = cluster
        self._stream = snapshot_stream_name(cluster)
        self._settings = settings
        self._node = node

    @property
    def max_payload(self) -> int:
        return self._bus.state.max_payload

    async def put(self, subject: str, data: bytes, expected: int | None = None) -> int:
        headers = {} if expected is None else {HEADER_EXPECTED_LAST: str(expected)}
        reply = await self._store(subject, data, headers)
        if reply.error_code == _WRONG_LAST:
            raise SnapshotConflictError(f"subject {subject}: has another last message")
        if reply.error_code:
            raise SnapshotStoreError(f"stream {self._stream}: {reply.error}")
        return reply.number("seq")

    async def last(self, subject: str) -> Stored | None:
        reply = await self._call(f"STREAM.MSG.GET.{self._stream}", last_by_subj=subject)
        if reply.error_code in (NO_MESSAGE, STREAM_NOT_FOUND):
            return None
        if reply.error_code:
            raise SnapshotStoreError(f"stream {self._stream}: {reply.error}")
        try:
            data = base64.b64decode(reply.text("message", "data"), validate=True)
        except binascii.Error as error:
            raise SnapshotStoreError(f"stream {self._stream}: answered no message") from error
        return Stored(reply.number("message", "seq"), subject, data)

    async def read(self, pattern: str, first: int) -> AsyncGenerator[Stored]:
        buffer = InboundBuffer()
        consumer = OrderedConsumer(
            self._link(),
            api=self._bus.api_prefix,
            stream=self._stream,
            name=f"mapbridge-{self._node}-{secrets.token_hex(8)}-snapshot",
            filters=[pattern],
            take=buffer.put,
            room=lambda: _BUFFER_BYTES_MAX - buffer.bytes,
        )
        try:
            await consumer.open(first - 1)
            while len(buffer) or consumer.pending:
                yield await self._next(consumer, buffer)
        except (DoubtError, RequestError) as error:
            raise SnapshotStoreError(f"stream {self._stream}: {error}") from error
        finally:
            await consumer.close()
            with contextlib.suppress(RequestError):
                await consumer.remove()

    async def _next(self, consumer: OrderedConsumer, buffer: InboundBuffer) -> Stored:
        if not len(buffer):
            if consumer.doubted:
                raise DoubtError(consumer.reason)
            await consumer.pull()
        taking = asyncio.ensure_future(buffer.take())
        try:
            async with asyncio.timeout(_SILENCE_SECONDS_MAX):
                while not taking.done():
                    attention = asyncio.ensure_future(consumer.attention.wait())
                    await asyncio.wait({taking, attention}, return_when=asyncio.FIRST_COMPLETED)
                    attention.cancel()
                    if consumer.attention.is_set():
                        consumer.attention.clear()
                        if consumer.doubted and not taking.done():
                            raise DoubtError(consumer.reason)
                        await consumer.pull()
        except TimeoutError as error:
            raise DoubtError("messages are missing") from error
        finally:
            taking.cancel()
        raw = taking.result()
        assert isinstance(raw, Raw)
        return Stored(raw.sequence, raw.subject, raw.data)

    async def _store(self, subject: str, data: bytes, headers: dict[str, str]) -> Reply:
        link = self._link()
        if len(data) + MESSAGE_OVERHEAD_BYTES > link.max_payload:
            raise SnapshotStoreError("snapshots: the broker's limit has shrunk")
        try:
            return Reply((await link.request(subject, data, headers)).data)
        except RequestError as error:
            if not error.no_responder:
                raise SnapshotStoreError(str(error)) from error
        except nats_errors.Error as error:
            raise SnapshotStoreError(str(error)) from error
        await self._make()
        try:
            return Reply((await link.request(subject, data, headers)).data)
        except (RequestError, nats_errors.Error) as error:
            raise SnapshotStoreError(str(error)) from error

    async def _make(self) -> None:
        config: dict[str, object] = {
            "name": self._stream,
            "subjects": [snapshots_filter(self._cluster)],
            "description": "snapshots of eBPF maps (mapbridge)",
            "retention": "limits",
            "discard": "old",
            "storage": self._settings.storage,
            "num_replicas": self._settings.replicas,
            "max_msgs_per_subject": 1,
            "allow_direct": True,
            "allow_rollup_hdrs": False,
        }
        reply = await self._call(f"STREAM.CREATE.{self._stream}", **config)
        if reply.error_code:
            raise SnapshotStoreError(f"stream {self._stream}: cannot be made ({reply.error})")

    async def _call(self, what: str, **body: object) -> Reply:
        try:
            return await self._link().call(f"{self._bus.api_prefix}.{what}", body)
        except RequestError as error:
            raise SnapshotStoreError(str(error)) from error

    def _link(self) -> Link:
        link = self._bus.link_now
        if link is None:
            raise SnapshotStoreError("snapshots: the broker is away")
        return link
