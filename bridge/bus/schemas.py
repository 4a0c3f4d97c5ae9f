"""Where a cluster keeps what its maps mean: a small stream, one message per map and layout.

It is a stream of its own, because the log forgets by age and size, and a layout must be there for
as long as a change that names it. A message is stored under the condition that its subject is
empty: what a layout means is said once, and nobody with the right to publish can say it otherwise
later without the broker refusing.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass

from bridge.bus.link import ForbiddenError, Link, Reply, RequestError
from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import MESSAGE_OVERHEAD_BYTES, LogUnavailableError
from bridge.bus.streams import NO_MESSAGE, STREAM_NOT_FOUND, LogSettings
from bridge.wire.subjects import (
    HEADER_EXPECTED_LAST,
    schema_filter,
    schema_stream_name,
    schema_subject,
)

_WRONG_LAST = 10071
_STORE_FAILED = 10077
_SECONDS_MAX = 30.0  # of trying; an election among servers takes about ten
_PAUSE_SECONDS = 0.25


class SchemaStoreError(LogUnavailableError):
    """The stream of layouts cannot be made, read or written."""


@dataclass(frozen=True, slots=True)
class StoredSchema:
    """A message of the stream. ``sequence`` tells which of two layouts was stored later."""

    sequence: int
    data: bytes


class SchemaStore:
    """The layouts of one cluster. Methods wait while the broker is away, and try for a while."""

    def __init__(self, bus: NatsBus, cluster: str, settings: LogSettings | None = None) -> None:
        self._bus = bus
        self._cluster = cluster
        self._stream = schema_stream_name(cluster)
        self._settings = settings or LogSettings()

    async def put(self, map_name: str, layout: int, data: bytes) -> bool:
        """Store a layout; ``False``: it was there already. Raises ``SchemaStoreError``."""
        limit = self._bus.state.max_payload - MESSAGE_OVERHEAD_BYTES
        if len(data) > limit:
            raise SchemaStoreError(
                f"layout of map {map_name}: is too large for the broker ({len(data)} bytes, "
                f"{limit} fit)",
                hint="raise max_payload in the broker's configuration",
            )
        subject = schema_subject(self._cluster, map_name, layout)
        trouble, end = "", asyncio.get_running_loop().time() + _SECONDS_MAX
        while asyncio.get_running_loop().time() < end:
            try:
                link = await self._bus.link()
                await self._ensure(link)
                message = await link.request(subject, data, {HEADER_EXPECTED_LAST: "0"})
                reply = Reply(message.data)
            except ForbiddenError as error:
                trouble = str(error)
                break
            except RequestError as error:
                trouble = str(error)
            else:
                if not reply.error_code:
                    return True
                if reply.error_code == _WRONG_LAST or _is_taken(reply):
                    return False
                trouble = reply.error
            await asyncio.sleep(_PAUSE_SECONDS)
        raise SchemaStoreError(f"stream {self._stream}: a layout cannot be stored ({trouble})")

    async def get(self, map_name: str, layout: int) -> StoredSchema | None:
        """A layout, ``None`` when nobody stored it. Raises ``SchemaStoreError``."""
        return await self._last(schema_subject(self._cluster, map_name, layout))

    async def all(self, map_name: str) -> list[StoredSchema]:
        """All layouts of a map, the one that was stored first in front."""
        body = {"subjects_filter": schema_filter(self._cluster, map_name)}
        reply = await self._ask(f"STREAM.INFO.{self._stream}", body)
        found = [await self._last(subject) for subject in reply.section("state", "subjects")]
        return sorted((one for one in found if one is not None), key=lambda one: one.sequence)

    async def _last(self, subject: str) -> StoredSchema | None:
        reply = await self._ask(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": subject})
        if reply.error_code:
            return None
        try:
            data = base64.b64decode(reply.text("message", "data"), validate=True)
        except binascii.Error as error:
            raise SchemaStoreError(f"stream {self._stream}: answered no message") from error
        return StoredSchema(reply.number("message", "seq"), data)

    async def _ask(self, what: str, body: Mapping[str, object]) -> Reply:
        trouble, end = "", asyncio.get_running_loop().time() + _SECONDS_MAX
        while asyncio.get_running_loop().time() < end:
            try:
                link = await self._bus.link()
                reply = await link.call(f"{self._bus.api_prefix}.{what}", body)
            except ForbiddenError as error:
                trouble = str(error)
                break
            except RequestError as error:
                trouble = str(error)
            else:
                if reply.error_code in (0, NO_MESSAGE, STREAM_NOT_FOUND):
                    return reply
                trouble = reply.error
            await asyncio.sleep(_PAUSE_SECONDS)
        raise SchemaStoreError(f"stream {self._stream}: cannot be read ({trouble})")

    async def _ensure(self, link: Link) -> None:
        """Make the stream when it is missing; one that is there is taken as it is."""
        api = self._bus.api_prefix
        reply = await link.call(f"{api}.STREAM.INFO.{self._stream}", {})
        if reply.error_code != STREAM_NOT_FOUND:
            return
        config: dict[str, object] = {
            "name": self._stream,
            "subjects": [schema_filter(self._cluster)],
            "description": "what the bytes of eBPF maps mean (mapbridge)",
            "retention": "limits",
            "discard": "new",
            "storage": self._settings.storage,
            "num_replicas": self._settings.replicas,
            "max_msgs_per_subject": 1,
            "discard_new_per_subject": True,
            "allow_direct": True,
            "allow_rollup_hdrs": False,
        }
        await link.call(f"{api}.STREAM.CREATE.{self._stream}", config)


def _is_taken(reply: Reply) -> bool:
    """Older servers look at the limit of one message per subject before the condition."""
    return reply.error_code == _STORE_FAILED and "per subject" in reply.error
