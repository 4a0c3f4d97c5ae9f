"""One life of a pull consumer: made, read in order, and given up at the first doubt.

The server pushes into an inbox what pull requests allow. Two requests overlap, so that the next is
waiting there when one is used up; each is bounded in bytes, so that neither this process nor the
server's write queue can be flooded. The consumer's own sequence has no holes: one that skips,
a heartbeat that stays away, or any status that is not the normal end of a request is a doubt.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

import orjson

from bridge.bus.buffer import Raw
from bridge.bus.link import Link, RequestError

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as RawSubscription

REQUESTS_MAX: Final = 2
REQUEST_BYTES_MIN: Final = 8 << 20
_REQUEST_MESSAGES: Final = 1_000_000  # bytes are the bound
_EXPIRES_SECONDS: Final = 30
_GRACE_SECONDS: Final = 5
_HEARTBEAT_SECONDS: Final = 1
_SILENT_TICKS_MAX: Final = 4
_INACTIVE_SECONDS: Final = 60
_NS: Final = 1_000_000_000
_CONSUMER_NOT_FOUND: Final = 10014
_ACK_TOKENS: Final = 9
_ACK_TOKENS_WITH_DOMAIN: Final = 11


class DoubtError(Exception):
    """The consumer cannot be trusted any more; make another one."""


class OrderedConsumer:
    """Calls ``take`` for every message behind a place, in order, until there is a doubt."""

    def __init__(
        self,
        link: Link,
        *,
        api: str,
        stream: str,
        name: str,
        filters: Sequence[str],
        take: Callable[[Raw], None],
        room: Callable[[], int],
    ) -> None:
        self._link = link
        self._api = api
        self._stream = stream
        self._name = name
        self._filters = list(filters)
        self._after = 0
        self._take = take
        self._room = room  # bytes that the reader can take, outstanding requests not counted
        self._request_bytes = max(REQUEST_BYTES_MIN, 2 * link.max_payload)
        self._inbox = link.new_inbox()
        self._requests: dict[str, float] = {}  # inbox of a request -> when it is overdue
        self._request_count = 0
        self._consumed = 0  # consumer sequence of the last message
        self._silent_ticks = 0
        self._raw: RawSubscription | None = None
        self.attention = asyncio.Event()  # a request ended, there is a doubt, or room
        self.doubted = False
        self.reason = ""
        self.pending = 0  # messages behind the last one that came

    @property
    def consumed(self) -> int:
        """Messages that came."""
        return self._consumed

    async def open(self, after: int) -> None:
        """Make the consumer on the server; raises ``DoubtError`` or ``RequestError``."""
        self._after = after
        self._raw = await self._link.subscribe(f"{self._inbox}.*", self._receive)
        path = f"{self._stream}.{self._name}"
        # The name is ours: one left over, with another start or filter, must go first.
        gone = await self._link.call(f"{self._api}.CONSUMER.DELETE.{path}")
        if gone.error_code not in (0, _CONSUMER_NOT_FOUND):
            raise DoubtError(f"consumer cannot be removed: {gone.error}")
        config = self._config()
        subject = f"{self._api}.CONSUMER.CREATE.{path}"
        if len(self._filters) == 1:  # lets the broker's permissions speak of the filter
            subject += f".{self._filters[0]}"
        made = await self._link.call(subject, {"stream_name": self._stream, "config": config})
        if made.error_code:
            raise DoubtError(f"consumer cannot be made: {made.error}")
        echoed = made.section("config")
        got = echoed.get("filter_subjects") or [echoed.get("filter_subject")]
        if got != self._filters or echoed.get("opt_start_seq") != self._after + 1:
            raise DoubtError("consumer: the broker ignored a part of its configuration")
        self.pending = made.number("num_pending")
        self._link.on_lost(self._lost)
        await self.pull()

    def _config(self) -> dict[str, object]:
        config: dict[str, object] = {
            "name": self._name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._after + 1,
            "ack_policy": "none",
            "replay_policy": "instant",
            "mem_storage": True,
            "num_replicas": 1,
            "inactive_threshold": _INACTIVE_SECONDS * _NS,
        }
        if len(self._filters) == 1:
            config["filter_subject"] = self._filters[0]
        else:
            config["filter_subjects"] = self._filters
        return config

    def may_pull(self) -> bool:
        outstanding = len(self._requests)
        room = self._room() - outstanding * self._request_bytes
        return outstanding < REQUESTS_MAX and room >= self._request_bytes

    async def pull(self) -> None:
        """Ask for more, as far as there is room for all that may come."""
        now = asyncio.get_running_loop().time()
        while self.may_pull():
            self._request_count += 1
            inbox = f"{self._inbox}.{self._request_count}"
            self._requests[inbox] = now + _EXPIRES_SECONDS + _GRACE_SECONDS
            body = {
                "batch": _REQUEST_MESSAGES,
                "max_bytes": self._request_bytes,
                "expires": _EXPIRES_SECONDS * _NS,
                "idle_heartbeat": _HEARTBEAT_SECONDS * _NS,
            }
            await self._link.send(
                f"{self._api}.CONSUMER.MSG.NEXT.{self._stream}.{self._name}",
                orjson.dumps(body),
                reply=inbox,
            )

    def tick(self) -> None:
        """Once a heartbeat: silence while something is asked for is a doubt.

        Ticks are counted and not seconds, so that a stall of this process is not taken for one of
        the server.
        """
        if not self._requests:
            self._silent_ticks = 0
            return
        self._silent_ticks += 1
        if self._silent_ticks > _SILENT_TICKS_MAX:
            self.doubt("no heartbeat")
        now = asyncio.get_running_loop().time()
        if any(overdue < now for overdue in self._requests.values()):
            self.doubt("a request did not end")

    async def close(self) -> None:
        """Stop listening."""
        raw, self._raw = self._raw, None
        if raw is not None and self._link.alive:
            await self._link.unsubscribe(raw)

    async def remove(self) -> None:
        """Remove the consumer from the server; it would vanish by itself after a while."""
        if not self._link.alive:
            return
        try:
            await self._link.call(f"{self._api}.CONSUMER.DELETE.{self._stream}.{self._name}")
        except RequestError:
            return  # inactive_threshold removes it

    def _receive(self, message: Msg) -> None:
        if self._raw is None or self.doubted:
            return
        self._silent_ticks = 0
        if message.subject.startswith(self._inbox):
            self._status(message)
            return
        tokens = message.reply.split(".")
        if len(tokens) == _ACK_TOKENS:
            fields = tokens[5:9]
        elif len(tokens) >= _ACK_TOKENS_WITH_DOMAIN:
            fields = tokens[7:11]
        else:
            self.doubt(f"a message without its place (got {message.reply!r})")
            return
        try:
            sequence, consumed, stored_at_ns, pending = (int(field) for field in fields)
        except ValueError:
            self.doubt(f"a message whose place is none (got {message.reply!r})")
            return
        if consumed != self._consumed + 1:
            self.doubt(f"messages missing ({consumed} came behind {self._consumed})")
            return
        if sequence <= self._after:
            # Asked for a place that its server does not have yet, it begins at that server's end.
            self.doubt(f"message {sequence} came, the log was read up to {self._after} before")
            return
        self._consumed = consumed
        self._after = sequence
        self.pending = pending
        self._take(Raw(sequence, stored_at_ns, message.subject, message.data))

    def _status(self, message: Msg) -> None:
        headers = message.headers or {}
        status, text = headers.get("Status", ""), headers.get("Description", "")
        if status == "100":
            return
        normal = status in ("404", "408") or (
            status == "409" and ("exceeds maxbytes" in text.lower() or "batch" in text.lower())
        )
        if not normal:
            self.doubt(f"status {status} {text}")
            return
        self._requests.pop(message.subject, None)
        self.attention.set()

    def _lost(self) -> None:
        self.doubt("connection lost")

    def doubt(self, reason: str) -> None:
        """This consumer is to be given up."""
        if not self.doubted:
            self.reason = reason
            self.doubted = True
        self.attention.set()
