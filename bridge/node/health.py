"""How the node is, told to whoever supervises it: over HTTP, and to systemd.

Invariant: while the node runs, a sign of life comes only from the loop that has just looked at the
threads that capture and apply, and at the broker's process: ``tell``. While it starts or stops
there is nothing to look at, and that the event loop turns is the sign.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType

from bridge.config.settings import Config
from bridge.health.http import HttpServer
from bridge.health.latest import Latest, Phase, section
from bridge.health.neighbours import Neighbours
from bridge.health.notify import Notifier
from bridge.health.pages import Pages
from bridge.node.report import Report
from bridge.node.services import MapState

BEAT_SECONDS = 1.0
PATIENCE_SECONDS = 60.0  # more time that systemd is asked for, at each beat of a start or stop
_SETTLED = {str(MapState.RUNNING), str(MapState.WAITING), "parked"}


class Health:
    """Belongs to the event loop. A context: it answers from its beginning to its end."""

    def __init__(self, config: Config, report: Report, harmless: Callable[[], None]) -> None:
        """``harmless`` takes every privilege from the thread that calls it."""
        self._harmless = harmless
        self._config = config
        self._report = report
        self._latest = Latest()
        self._notifier = Notifier()
        self._http: HttpServer | None = None
        self._beating: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready_told = False
        self._status = ""
        self.neighbours = Neighbours()
        self._pages = Pages(config, self._latest, self._counts, self.neighbours)

    async def __aenter__(self) -> Health:
        """Raises ``BridgeError`` when the address cannot be had."""
        self._loop = asyncio.get_running_loop()
        listen = self._config.http.listen
        if listen is not None:
            self._http = HttpServer(listen, self._pages, self._trouble, begin=self._harmless)
            self._report.say("http ready", url=self._http.url)
        self._beating = asyncio.create_task(self._beat(), name="health")
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._beating is not None:
            self._beating.cancel()
            await asyncio.gather(self._beating, return_exceptions=True)
        if self._http is not None:
            await asyncio.to_thread(self._http.close)
        self._notifier.close()

    def step(self, text: str) -> None:
        """The node begins with a part of its start."""
        self._latest.enter(Phase.STARTING, text)
        self._say(text)

    def tell(self, document: Mapping[str, object]) -> None:
        """The node has looked at all of its parts, and this is what it found."""
        view = self._latest.view()
        if view.phase is Phase.STOPPING:
            return
        self._latest.tell(document)
        names = {one.name for one in self._config.maps if not one.selector.is_pattern}
        maps = {name: section(found) for name, found in section(document, "maps").items()}
        settled = names <= maps.keys() and all(
            str(found.get("state")) in _SETTLED for found in maps.values()
        )
        if settled and not self._ready_told:
            self._ready_told = True
            self._latest.enter(Phase.RUNNING, "running")
            self._status = _summary(document)
            self._notifier.ready(self._status)
        if self._ready_told:
            self._say(_summary(document))
            self._notifier.watchdog()

    def reconfigure(self, config: Config) -> None:
        """Other maps are bridged from now on."""
        self._config = config
        self._pages.reconfigure(config)

    def reloading(self, begins: bool) -> None:
        """The configuration is being read again, or has been."""
        if not self._ready_told or self._latest.view().phase is Phase.STOPPING:
            return
        if begins:
            self._notifier.reloading("reading the configuration again")
        else:
            self._notifier.ready(self._status)

    def stopping(self) -> None:
        """What was captured goes out; then the node ends."""
        text = "stopping: what was captured goes out"
        self._latest.enter(Phase.STOPPING, text)
        self._notifier.stopping(text)

    async def _beat(self) -> None:
        while True:
            if self._latest.view().phase is not Phase.RUNNING:
                self._latest.beat()
                self._notifier.extend(PATIENCE_SECONDS)
            await asyncio.sleep(BEAT_SECONDS)

    def _say(self, text: str) -> None:
        if text != self._status:
            self._status = text
            self._notifier.status(text)

    def _counts(self) -> Mapping[str, object]:
        return {} if self._http is None else self._http.statistics.as_dict()

    def _trouble(self, error: Exception) -> None:
        """Called by the server's threads."""
        assert self._loop is not None
        text = f"an http request failed: {type(error).__name__}: {error}"
        self._loop.call_soon_threadsafe(self._report.warn_once, text)


def _summary(document: Mapping[str, object]) -> str:
    """One line for `systemctl status`; it changes only when something does."""
    maps = [section(found) for found in section(document, "maps").values()]
    synced = sum(found.get("synced") is True for found in maps)
    waiting = sum(found.get("state") == str(MapState.WAITING) for found in maps)
    broker = "" if section(document, "broker").get("connected") else ", broker away"
    more = f", {waiting} waiting" if waiting else ""
    return f"{synced} of {len(maps)} maps synced{more}{broker}"
