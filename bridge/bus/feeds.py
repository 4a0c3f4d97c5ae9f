"""Where feeds are published: a stream beside the log, with one subject per map and kind.

Invariant: the newest message of a subject says how far of the log the feed has come, and every
message is stored on the condition that the one before it is still the newest. So the position is
stored with the changes, in one step: whoever goes on, here or on another machine, publishes each
change once, and of two who publish at the same time one is refused.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from nats import errors as nats_errors

from bridge.bus.link import ForbiddenError, Link, Reply, RequestError, stored_header
from bridge.bus.nats_bus import NatsBus
from bridge.bus.protocol import FencedError, LogUnavailableError
from bridge.bus.streams import NO_MESSAGE, STREAM_NOT_FOUND, LogSettings
from bridge.wire.subjects import (
    HEADER_EXPECTED_LAST,
    HEADER_LAYOUT,
    HEADER_MESSAGE_ID,
    HEADER_SOURCE,
    feed_filter,
    feed_stream_name,
    feed_subject,
)

_NS = 1_000_000_000
_PAUSE_SECONDS_MIN = 0.05
_PAUSE_SECONDS_MAX = 2.0
_FAILURES_MAX = 20  # answers in a row that refuse; a broker that is away is waited for


@dataclass(frozen=True, slots=True)
class SourcePlace:
    """Everything of the log ``log`` before message ``sequence``, and of that so many rows.

    ``rows`` is 0 when the whole message is meant.
    """

    log: str
    sequence: int
    rows: int = 0

    def __str__(self) -> str:
        return f"{self.sequence}/{self.rows}/{self.log}"

    @staticmethod
    def parse(text: str) -> SourcePlace | None:
        sequence, _, rest = text.partition("/")
        rows, _, log = rest.partition("/")
        if not (sequence.isdecimal() and rows.isdecimal() and log):
            return None
        return SourcePlace(log, int(sequence), int(rows))


@dataclass(frozen=True, slots=True)
class FeedSettings:
    """What the stream of feeds keeps when it has to be made."""

    max_age_seconds: int = 24 * 3600
    log: LogSettings = field(default_factory=LogSettings)


class FeedPublisher:
    """One feed of one map. Methods wait while the broker is away."""

    def __init__(
        self, bus: NatsBus, cluster: str, kind: str, map_name: str, settings: FeedSettings
    ) -> None:
        self._bus = bus
        self._cluster = cluster
        self._settings = settings
        self._stream = feed_stream_name(cluster)
        self.subject = feed_subject(cluster, kind, map_name)
        self._prefix = f"feed:{kind}:{map_name}"
        self._expected = 0
        self._failures = 0

    async def open(self) -> SourcePlace | None:
        """Make the stream if it is missing; how far this feed had come, ``None``: nothing there.

        Raises ``LogUnavailableError``, ``ForbiddenError``.
        """
        while True:
            try:
                link = await self._bus.link()
                await self._ensure(link)
                self._expected, place = await self._last(link)
                return place
            except ForbiddenError:
                raise
            except RequestError as error:
                await self._pause(str(error))

    async def publish(self, data: bytes, place: SourcePlace, layout: int) -> None:
        """Store a message that takes the feed to ``place``, once.

        Raises ``FencedError`` when somebody else publishes this feed, ``LogUnavailableError``,
        ``ForbiddenError``.
        """
        headers = {
            HEADER_MESSAGE_ID: f"{self._prefix}:{place}",
            HEADER_SOURCE: str(place),
            HEADER_LAYOUT: f"{layout:016x}",
        }
        doubtful = False
        while True:
            try:
                link = await self._bus.link()
                if doubtful:
                    last, known = await self._last(link)
                    if known == place and last > self._expected:
                        self._expected = last
                        return
                    if last not in (0, self._expected):
                        raise self._fenced(last)
                    self._expected = last  # 0: all has expired, or nothing was there
                doubtful = True
                headers[HEADER_EXPECTED_LAST] = str(self._expected)
                reply = Reply((await link.request(self.subject, data, headers)).data)
            except ForbiddenError:
                raise
            except (RequestError, nats_errors.Error) as error:
                await self._pause(str(error), count=False)
                continue
            if not reply.error_code:
                self._expected = reply.number("seq")
                self._failures = 0
                return
            await self._pause(reply.error)

    async def _ensure(self, link: Link) -> None:
        api = self._bus.api_prefix
        reply = await link.call(f"{api}.STREAM.INFO.{self._stream}", {})
        if reply.error_code == STREAM_NOT_FOUND:
            config: dict[str, object] = {
                "name": self._stream,
                "subjects": [feed_filter(self._cluster)],
                "description": "changes of eBPF maps for readers, decoded (mapbridge)",
                "retention": "limits",
                "discard": "old",
                "storage": self._settings.log.storage,
                "num_replicas": self._settings.log.replicas,
                "max_age": self._settings.max_age_seconds * _NS,
                "duplicate_window": min(120, self._settings.max_age_seconds) * _NS,
                "allow_direct": True,
            }
            reply = await link.call(f"{api}.STREAM.CREATE.{self._stream}", config)
        if reply.error_code:
            raise RequestError(f"stream {self._stream}: {reply.error}", sent=True)

    async def _last(self, link: Link) -> tuple[int, SourcePlace | None]:
        subject = f"{self._bus.api_prefix}.STREAM.MSG.GET.{self._stream}"
        reply = await link.call(subject, {"last_by_subj": self.subject})
        if reply.error_code == STREAM_NOT_FOUND:  # somebody has deleted it
            await self._ensure(link)
            return 0, None
        if reply.error_code == NO_MESSAGE:
            return 0, None
        if reply.error_code:
            raise RequestError(f"stream {self._stream}: {reply.error}", sent=True)
        place = SourcePlace.parse(stored_header(reply.text("message", "hdrs"), HEADER_SOURCE))
        return reply.number("message", "seq"), place

    async def _pause(self, trouble: str, *, count: bool = True) -> None:
        self._failures += 1
        if count and self._failures > _FAILURES_MAX:
            raise LogUnavailableError(f"feed {self.subject}: cannot be published ({trouble})")
        pause = _PAUSE_SECONDS_MIN * 2 ** min(self._failures, 10)
        await asyncio.sleep(min(pause, _PAUSE_SECONDS_MAX))

    def _fenced(self, last: int) -> FencedError:
        return FencedError(
            f"feed {self.subject}: somebody else publishes it (message {last}, ours "
            f"{self._expected})",
            hint="run one `mapbridge feed` per map and cluster",
        )
