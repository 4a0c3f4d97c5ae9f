"""One supervised connection to the broker, made anew for as long as the bridge runs.

nats-py's own reconnection is not used: it sends what was queued before the loss ahead of what the
caller sends again, keeps futures of the lost connection waiting, and closes for good on several
errors. Here one physical connection is one ``Link``; whatever hangs on a link ends with it, and the
supervisor dials the next one.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from nats import errors as nats_errors

from bridge.access import Access
from bridge.bus.credentials import connect_options, wants_tls
from bridge.bus.greeting import other_order, other_order_may_be_meant
from bridge.bus.link import Client, ForbiddenError, Link, RequestError
from bridge.bus.protocol import (
    AwayError,
    BrokerTooOldError,
    BusClosedError,
    BusState,
    LogUnavailableError,
)
from bridge.bus.refusals import redacted, translated
from bridge.errors import BridgeError, InvariantError

SERVER_VERSION_MIN = (2, 10)
_PAUSE_SECONDS_MIN = 0.05
_PAUSE_SECONDS_MAX = 2.0
_REPORT_EVERY = 20  # failed rounds between two reports of the same trouble
_PULSE_SECONDS = 5.0


def _ignore(text: str) -> None:
    del text


@dataclass(frozen=True, slots=True)
class BusSettings:
    """How to reach the broker, and under which name."""

    node: str
    urls: tuple[str, ...] = field(
        default=("nats://127.0.0.1:4222",), repr=False
    )  # may hold secrets
    access: Access = field(default_factory=Access)
    inbox_prefix: str = "_INBOX"
    domain: str | None = None  # JetStream domain, for leaf nodes
    connect_timeout_seconds: float = 3.0
    request_timeout_seconds: float = 5.0
    ping_interval_seconds: int = 5
    pings_outstanding_max: int = 3

    @property
    def api_prefix(self) -> str:
        return f"$JS.{self.domain}.API" if self.domain else "$JS.API"


class Connection:
    """Keeps one ``Link`` up. ``report`` gets a sentence when the broker goes, stays away, comes."""

    def __init__(self, settings: BusSettings, report: Callable[[str], None] = _ignore) -> None:
        if not settings.urls:
            raise ValueError("urls: needs at least one")
        self.settings = settings
        self._report = report
        self._link: Link | None = None
        self._changed = asyncio.Event()  # set while there is a link, or when all is over
        self._failure: BridgeError | None = None
        self._closing = False
        self._connections = 0
        self._trouble = ""
        self._discovered: list[str] = []
        self._last_state = BusState(False, 0, "", 0, redacted(settings.urls[0]))
        self._task: asyncio.Task[None] | None = None

    @property
    def state(self) -> BusState:
        last, link = self._last_state, self._link
        return BusState(
            link is not None and link.alive,
            max(0, self._connections - 1),
            last.server_version,
            last.max_payload,
            last.url,
            self._trouble,
        )

    async def open(self) -> None:
        """Connect; waits for as long as the broker is down.

        Raises what waiting cannot mend: ``BrokerRefusedError``, ``BrokerTooOldError``,
        ``LogUnavailableError`` (no JetStream).
        """
        assert self._task is None, "opened twice"
        self._task = asyncio.create_task(self._supervise(), name="bus-connection")
        try:
            await self.link()
        except BaseException:
            await self.close()
            raise

    async def link(self) -> Link:
        """The present link; waits for one."""
        while True:
            if self._failure is not None:
                raise self._failure
            if self._closing:
                raise BusClosedError("bus: is closed")
            if self._link is not None and self._link.alive:
                return self._link
            self._changed.clear()
            await self._changed.wait()

    @property
    def link_now(self) -> Link | None:
        return self._link if self._link is not None and self._link.alive else None

    async def close(self) -> None:
        self._closing = True
        self._changed.set()
        link, task, self._task = self._link, self._task, None
        if task is not None:
            await end_task(task)
        if link is not None:
            await link.shut()
        self._link = None

    async def _supervise(self) -> None:
        try:
            await self._keep_connected()
        except Exception as error:  # noqa: BLE001 - whoever waits for a link must learn of it
            self._failure = InvariantError(f"broker: supervision failed ({error!r})")
            self._failure.__cause__ = error
            if self._link is not None:  # nobody would notice when it hangs
                self._link.lose(str(self._failure))
            self._changed.set()

    async def _keep_connected(self) -> None:
        failures = 0
        while not self._closing:
            urls = [*self.settings.urls, *self._discovered]
            try:
                link = await self._dial(urls[failures % len(urls)])
            except BridgeError as error:
                if self._connections == 0 and not isinstance(error, AwayError):
                    self._failure = error
                    self._changed.set()
                    return
                self._trouble = str(error)
                if failures % _REPORT_EVERY == 0:
                    hint = f" ({error.hint})" if error.hint else ""
                    self._report(f"{error}; trying again{hint}")
                pause = min(_PAUSE_SECONDS_MAX, _PAUSE_SECONDS_MIN * 2 ** min(failures, 10))
                failures += 1
                await asyncio.sleep(pause * random.uniform(0.5, 1.0))
                continue
            if failures or self._connections:
                self._report(f"broker {link.url}: connected")
            failures, self._trouble = 0, ""
            if self._task is None:  # closed, and the cancellation was swallowed
                await link.shut()
                return
            self._connections += 1
            self._link = link
            self._changed.set()
            await self._watch(link)
            self._link = None
            self._trouble = link.loss
            await link.shut()
            if not self._closing:
                self._report(f"broker {link.url}: connection lost ({link.loss})")

    async def _watch(self, link: Link) -> None:
        """Until the link is lost; a link that looks alive but answers nothing is given up."""
        while link.alive:
            try:
                async with asyncio.timeout(_PULSE_SECONDS):
                    await link.lost.wait()
            except TimeoutError:
                # A large message on a slow line goes ahead of the ping.
                patience = max(_PULSE_SECONDS, self.settings.request_timeout_seconds)
                if not await link.pulse(patience):
                    link.lose("no answer to a ping")

    async def _dial(self, url: str) -> Link:
        client = Client()
        reasons: list[str] = []
        link = Link(client, redacted(url), self.settings.request_timeout_seconds)

        async def note(error: Exception) -> None:
            reasons.append(str(error) or type(error).__name__)
            del reasons[:-5]
            link.told(reasons[-1])

        async def closed() -> None:
            link.lose(reasons[-1] if reasons else "closed by the broker")

        try:
            await self._connect(client, url, note, closed)
            await link.start()
            await self._check_server(link)
        except BridgeError:
            await link.shut()
            raise
        except (OSError, nats_errors.Error, TimeoutError, ValueError) as error:
            unheard = client.unheard and other_order_may_be_meant(error)
            await link.shut()
            wrong = await other_order(self.settings.access, url) if unheard else None
            if wrong is not None:
                raise wrong from error
            raise translated(url, error, reasons) from error
        except BaseException:
            await link.shut()
            raise
        self._discovered = [
            server.geturl()
            for server in client.discovered_servers
            if server.geturl() not in self.settings.urls
        ]
        self._last_state = BusState(True, 0, link.server_version, client.max_payload, link.url)
        return link

    async def _connect(
        self,
        client: Client,
        url: str,
        note: Callable[[Exception], object],
        closed: Callable[[], object],
    ) -> None:
        settings = self.settings
        _check_address(url)
        options = {**connect_options(settings.access, url)}
        client.needs_tls = wants_tls(settings.access, url)
        if url not in settings.urls and _is_address(urlsplit(url).hostname):
            # A discovered server gives its address only; its certificate has a name.
            options["tls_hostname"] = urlsplit(settings.urls[0]).hostname
        await client.connect(
            servers=[url],
            name=f"mapbridge/{settings.node}",
            inbox_prefix=settings.inbox_prefix,
            allow_reconnect=False,
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
            connect_timeout=settings.connect_timeout_seconds,  # type: ignore[arg-type]
            ping_interval=settings.ping_interval_seconds,
            max_outstanding_pings=settings.pings_outstanding_max,
            pending_size=-1,
            error_cb=note,  # type: ignore[arg-type]
            closed_cb=closed,  # type: ignore[arg-type]
            **options,  # type: ignore[arg-type]
        )

    async def _check_server(self, link: Link) -> None:
        version = link.version
        if version < SERVER_VERSION_MIN:
            raise BrokerTooOldError(
                f"broker {link.url}: nats-server {SERVER_VERSION_MIN[0]}.{SERVER_VERSION_MIN[1]}"
                f" or newer is needed (got {link.server_version})",
                hint="install a current nats-server, or pip install 'mapbridge[embedded]'",
            )
        try:
            reply = await link.call(f"{self.settings.api_prefix}.INFO", {})
        except ForbiddenError:
            raise
        except RequestError as error:
            if error.no_responder and not link.jetstream:
                raise LogUnavailableError(
                    f"broker {link.url}: has no JetStream",
                    hint="start nats-server with -js, or name the domain of the one that has it",
                ) from error
            raise AwayError(f"broker {link.url}: JetStream does not answer ({error})") from error
        if reply.error_code == 10039:
            raise LogUnavailableError(
                f"broker {link.url}: JetStream is not enabled for this account",
                hint="enable JetStream for the account in the server's configuration",
            )
        if reply.error_code:
            raise AwayError(f"broker {link.url}: JetStream is not ready ({reply.error})")


async def end_task(task: asyncio.Task[None]) -> None:
    """Cancel ``task`` until it has ended: code between may swallow a cancellation (wait_for)."""
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=1.0)
    if not task.cancelled():
        task.result()


def _check_address(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("nats", "tls", "ws", "wss") or not parts.hostname:
        raise ValueError("needs nats://host:port, or tls://, ws://, wss://")
    if parts.port == 0:  # one that is no number raises ValueError here
        raise ValueError("port 0 is none to connect to")


def _is_address(host: str | None) -> bool:
    try:
        ipaddress.ip_address(host or "")
    except ValueError:
        return False
    return True
