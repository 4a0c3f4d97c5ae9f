"""One physical connection to the broker: requests, subscriptions, and the moment it is lost.

Requests have an inbox and futures of their own, because those of nats-py wait out their timeout
when the connection goes; here they fail at once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import orjson
from nats import errors as nats_errors
from nats.aio import client as nats_client

from bridge.bus.protocol import BrokerRefusedError
from bridge.errors import BridgeError, Exit

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription as RawSubscription

_SHUT_SECONDS = 2.0
# What the server says to whoever may not publish; nats-py makes it lower case.
_FORBIDDEN = re.compile(r'permissions violation for publish to "([^"]+)"', re.IGNORECASE)


class RequestError(BridgeError):
    """A request without an answer. ``sent`` tells whether it may have been carried out."""

    def __init__(self, message: str, *, sent: bool, no_responder: bool = False) -> None:
        super().__init__(message)
        self.sent = sent
        self.no_responder = no_responder


class ForbiddenError(RequestError):
    """The broker does not let this user publish to a subject, and trying again is in vain."""

    exit_code = Exit.CONFIG

    def __init__(self, text: str) -> None:
        super().__init__(f"broker: {text}", sent=True)
        self.hint = "give this user what `mapbridge nats-permissions` prints for it"


class Client(nats_client.Client):
    """nats-py's client, proof against headers that nobody can parse and against lost TLS."""

    needs_tls = False

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # Whoever stands between could take the word TLS out of the greeting, and nats-py would
        # send passwords in the clear.
        if initial_connection and self.needs_tls and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise BrokerRefusedError(
                    "broker: offers no TLS, and TLS is asked for",
                    hint="turn TLS on in the broker, or take tls:// and broker.tls_* out here",
                )
            info["tls_required"] = True  # nats-py begins TLS on this word only
        await super()._process_info(info, initial_connection)

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        # An exception here would end the read loop without ending the connection.
        try:
            return await super()._process_headers(headers)
        except (IndexError, ValueError):
            return None

    @property
    def began(self) -> bool:
        """Whether ``connect`` got far enough for ``close`` to work."""
        return self._flush_queue is not None

    @property
    def unheard(self) -> bool:
        """Whether a broker took the connection and has not greeted."""
        return self._current_server is not None and not self._server_info

    async def written(self) -> None:
        """Until all that is queued was handed to the kernel: nats-py writes a ping past it."""
        flusher = self._flusher_task
        if self._flush_queue is None or flusher is None or flusher.done():
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await self._flush_queue.put(done)
        await done

    def abort(self) -> None:
        """Drop the socket without writing what is queued: a broker that hangs never reads it."""
        writer = getattr(self._transport, "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


class Reply:
    """The JSON answer of the JetStream API."""

    def __init__(self, data: bytes) -> None:
        try:
            body = orjson.loads(data)
        except orjson.JSONDecodeError as error:
            raise RequestError("broker: answered no JSON", sent=True) from error
        self.body: dict[str, object] = body if isinstance(body, dict) else {}
        found = self.body.get("error")
        failure: dict[str, object] = found if isinstance(found, dict) else {}
        self.error_code = _int(failure.get("err_code")) or _int(failure.get("code"))
        self.error = str(failure.get("description", "")) if failure else ""

    def section(self, *names: str) -> dict[str, object]:
        """The object under ``names``, empty when there is none."""
        here = self.body
        for name in names:
            found = here.get(name)
            here = found if isinstance(found, dict) else {}
        return here

    def number(self, *names: str) -> int:
        """The integer under ``names``, 0 when there is none."""
        return _int(self.section(*names[:-1]).get(names[-1]))

    def text(self, *names: str) -> str:
        """The text under ``names``, empty when there is none."""
        return str(self.section(*names[:-1]).get(names[-1], ""))


def stored_header(encoded: str, wanted: str) -> str:
    """A header of a stored message, out of what MSG.GET answers; empty: it has none such."""
    try:
        lines = base64.b64decode(encoded).decode(errors="replace").split("\r\n")
    except ValueError:
        return ""
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip().lower() == wanted.lower():
            return value.strip()
    return ""


def _int(value: object) -> int:
    return value if isinstance(value, int) else 0


class Link:
    """A connected client; once lost it never comes back."""

    def __init__(self, client: Client, url: str, timeout_seconds: float) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._waiting: dict[str, tuple[str, asyncio.Future[Msg]]] = {}  # with the subject asked
        self._inbox = ""
        self._requests = 0
        self._lost_callbacks: list[Callable[[], None]] = []
        self.url = url
        self.lost = asyncio.Event()
        self.loss = ""
        self.trouble = ""  # what the broker said last
        self.forbidden = ""  # what it said of a subject that this user may not publish to

    @property
    def alive(self) -> bool:
        return not self.lost.is_set()

    @property
    def max_payload(self) -> int:
        return self._client.max_payload

    @property
    def server_version(self) -> str:
        return str(self._client._server_info.get("version", ""))

    @property
    def version(self) -> tuple[int, int]:
        version = self._client.connected_server_version
        return version.major, version.minor

    @property
    def jetstream(self) -> bool:
        return bool(self._client._server_info.get("jetstream", False))

    async def start(self) -> None:
        self._inbox = self._client.new_inbox()
        await self._client.subscribe(
            f"{self._inbox}.*", cb=self._answer, pending_msgs_limit=-1, pending_bytes_limit=-1
        )

    async def request(
        self, subject: str, data: bytes = b"", headers: Mapping[str, str] | None = None
    ) -> Msg:
        """The first answer to ``data``; raises ``RequestError``."""
        loop = asyncio.get_running_loop()
        if not self.alive:
            raise RequestError(f"broker: connection lost ({self.loss})", sent=False)
        self._requests += 1
        token = str(self._requests)
        future: asyncio.Future[Msg] = loop.create_future()
        self._waiting[token] = (subject, future)
        timer = loop.call_later(self._timeout_seconds, self._expire, token)
        try:
            await self.send(subject, data, reply=f"{self._inbox}.{token}", headers=headers)
            message = await future
        finally:
            timer.cancel()
            self._waiting.pop(token, None)
        if not message.data and (message.headers or {}).get("Status") == "503":
            raise RequestError("broker: nobody answers", sent=False, no_responder=True)
        return message

    async def call(self, subject: str, body: Mapping[str, object] | None = None) -> Reply:
        """A request of the JetStream API; raises ``RequestError`` when there is no answer."""
        data = b"" if body is None else orjson.dumps(body)
        return Reply((await self.request(subject, data)).data)

    async def send(
        self,
        subject: str,
        data: bytes = b"",
        *,
        reply: str = "",
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Publish without waiting; raises ``RequestError`` when nothing went out."""
        try:
            await self._client.publish(
                subject, data, reply=reply, headers=dict(headers) if headers else None
            )
        except (nats_errors.Error, OSError) as error:
            raise RequestError(f"broker: cannot send ({error})", sent=False) from error

    def new_inbox(self) -> str:
        return self._client.new_inbox()

    async def subscribe(self, subject: str, take: Callable[[Msg], None]) -> RawSubscription:
        """``take`` gets every message; what may come in must be bounded by what is asked for."""

        async def deliver(message: Msg) -> None:
            take(message)

        try:
            return await self._client.subscribe(
                subject, cb=deliver, pending_msgs_limit=-1, pending_bytes_limit=-1
            )
        except (nats_errors.Error, OSError) as error:
            raise RequestError(f"broker: cannot subscribe ({error})", sent=False) from error

    async def unsubscribe(self, subscription: RawSubscription) -> None:
        with contextlib.suppress(nats_errors.Error, OSError):
            await subscription.unsubscribe()

    async def pulse(self, timeout_seconds: float) -> bool:
        """Whether the broker answers a ping, and so has taken and judged all that was sent."""
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._client.written()
                await self._client.flush(timeout=int(timeout_seconds) + 1)
        except (nats_errors.Error, TimeoutError, OSError):
            return False
        return True

    def on_lost(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` once, when the link is lost (now, when it is already)."""
        if self.alive:
            self._lost_callbacks.append(callback)
        else:
            callback()

    def lose(self, reason: str) -> None:
        """Declare the link lost: requests in flight fail now."""
        if self.lost.is_set():
            return
        self.loss = reason
        self.lost.set()
        callbacks, self._lost_callbacks = self._lost_callbacks, []
        for callback in callbacks:
            callback()
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(RequestError(f"broker: connection lost ({reason})", sent=True))

    def told(self, text: str) -> None:
        """What the broker says by itself; who waits for what it forbids need wait no longer."""
        self.trouble = text
        found = _FORBIDDEN.search(text)
        if found is None:
            return
        self.forbidden = found[0]
        for subject, future in self._waiting.values():
            if subject.lower() == found[1].lower() and not future.done():
                future.set_exception(ForbiddenError(found[0]))

    def check_allowed(self, subject: str) -> None:
        """Raises ``ForbiddenError`` when the last word that forbade something meant ``subject``."""
        if f'"{subject.lower()}"' in self.forbidden.lower():
            raise ForbiddenError(self.forbidden)

    async def shut(self) -> None:
        """Close the socket, in bounded time even when the broker hangs."""
        hung = self.lost.is_set()
        self.lose("closed")
        if not self._client.began:
            return
        if hung:
            self._client.abort()
        try:
            async with asyncio.timeout(_SHUT_SECONDS):
                await self._client.close()
        except (nats_errors.Error, TimeoutError, OSError):
            self._client.abort()

    async def _answer(self, message: Msg) -> None:
        self._settle(message.subject.rpartition(".")[2], message)

    def _expire(self, token: str) -> None:
        said = f" (it said: {self.trouble})" if self.trouble else ""
        text = f"broker: no answer within {self._timeout_seconds:g} seconds{said}"
        self._settle(token, RequestError(text, sent=True))

    def _settle(self, token: str, outcome: Msg | RequestError) -> None:
        _, future = self._waiting.get(token, ("", None))
        if future is None or future.done():
            return
        if isinstance(outcome, RequestError):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)
