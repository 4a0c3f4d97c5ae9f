"""One node from start to end: broker, capture, writer thread, one worker per map."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import asdict
from typing import Literal, TypeVar

from bridge import __version__
from bridge.apply.applier import Applier
from bridge.apply.inbox import Inbox
from bridge.bus.connection import BusSettings
from bridge.bus.control import ControlServer
from bridge.bus.embedded import EmbeddedServer
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.streams import LogSettings
from bridge.config.settings import Config
from bridge.errors import BridgeError, UnavailableError
from bridge.node.capturing import Capturing
from bridge.node.control import Control, MapView
from bridge.node.halts import Halts
from bridge.node.instance import StateDirectory
from bridge.node.positions import Positions
from bridge.node.process import require_privileges, tune_allocator
from bridge.node.report import Report
from bridge.node.worker import MapWorker, Services

T = TypeVar("T")

STATUS_SECONDS = 0.5
DRAIN_SECONDS = 10.0


async def run_node(config: Config, report: Report, *, dry_run: bool = False) -> None:
    """Run until SIGTERM or SIGINT, then let everything captured go out.

    ``dry_run``: capture and judge, but write to no map and publish nothing.
    A second signal ends the process at once. Raises what made going on impossible.
    """
    tune_allocator()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_signal(number: signal.Signals) -> None:
        if stop.is_set():
            os._exit(128 + number)
        report.say("stopping: what was captured goes out first; a second signal ends at once")
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    require_privileges(config)
    with StateDirectory(config.node.state_directory) as state:
        await Node(config, report, state, dry_run=dry_run).run(stop)


class Node:
    """Owns what the maps share. ``run`` is called once."""

    def __init__(
        self, config: Config, report: Report, state: StateDirectory, *, dry_run: bool = False
    ) -> None:
        self._config = config
        self._report = report
        self._state = state
        self._started = time.time()
        self._bus: NatsBus | None = None
        self._embedded: EmbeddedServer | None = None
        self._inbox: Inbox | None = None
        self._workers: list[MapWorker] = []
        self._capturing = Capturing(config, self._source_failed)
        self._positions = Positions(state)
        self._halts = Halts(state)
        self._dry_run = dry_run

    async def run(self, stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            started = await _unless(stop, self._start(stack))
            if started is None:
                return
            await self._serve(stop, started)

    async def _start(self, stack: AsyncExitStack) -> Applier:
        """Bring up what the maps need, in the order in which the parts depend on each other."""
        stack.push_async_callback(asyncio.to_thread, self._capturing.close)
        await asyncio.to_thread(self._capturing.start)
        self._report.say("capture ready", **self._capturing.summary())
        self._bus = await self._connect(stack)
        self._inbox = Inbox(self._config.limits.inbox_bytes, asyncio.get_running_loop())
        applier = Applier(
            self._inbox, report=self._map_trouble, on_start=self._capturing.own_thread
        )
        await asyncio.to_thread(applier.start)
        services = Services(
            cluster=self._config.node.cluster,
            node=self._config.node.name,
            bus=self._bus,
            capturing=self._capturing,
            inbox=self._inbox,
            applier=applier,
            report=self._report,
            outbox_bytes=self._config.limits.outbox_bytes,
            positions=self._positions,
            halts=self._halts,
            dry_run=self._dry_run,
        )
        self._workers = [MapWorker(entry, services) for entry in self._config.maps]
        return applier

    async def _connect(self, stack: AsyncExitStack) -> NatsBus:
        broker, node = self._config.broker, self._config.node
        urls = broker.urls
        if broker.embedded:
            server = await stack.enter_async_context(
                EmbeddedServer(
                    node.state_directory / "nats",
                    host=broker.listen.host,
                    port=broker.listen.port or None,
                    report=self._report.say,
                )
            )
            self._embedded = server
            urls = (server.url,)
            self._report.say("embedded nats-server ready", url=server.url)
        bus = await open_bus(BusSettings(node=node.name, urls=urls), self._report.say)
        stack.push_async_callback(bus.close)
        storage: Literal["file", "memory"] = "memory" if broker.storage == "memory" else "file"
        await bus.ensure_log(node.cluster, LogSettings(storage=storage, replicas=broker.replicas))
        return bus

    async def _serve(self, stop: asyncio.Event, applier: Applier) -> None:
        tasks = [asyncio.create_task(w.run(), name=w.config.name) for w in self._workers]
        status = asyncio.create_task(self._watch(applier), name="status")
        control = asyncio.create_task(self._control().run(), name="control")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        running = {*tasks, status, control, stopping}
        try:
            failure: BaseException | None = None
            while not stop.is_set() and failure is None:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                failure = next((e for t in done if (e := t.exception()) is not None), None)
            await self._wind_down()
            if failure is not None:
                raise failure
        finally:
            everything = [*tasks, status, control, stopping]
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
            await asyncio.to_thread(applier.stop, DRAIN_SECONDS)
            self._save_positions()
            for worker in self._workers:
                await worker.close()

    def _control(self) -> ControlServer:
        assert self._bus is not None
        node = self._config.node
        control = Control(node.cluster, node.name, self._views, self._halts)
        return ControlServer(self._bus.link, control.subjects, control.handle)

    def _views(self) -> dict[str, MapView]:
        views = {worker.config.name: worker.view() for worker in self._workers}
        return {name: view for name, view in views.items() if view is not None}

    async def _wind_down(self) -> None:
        """Empty the way out: rings into outboxes, outboxes into the stream."""
        taken = await asyncio.gather(
            *(w.stop_capturing() for w in self._workers), return_exceptions=True
        )
        sent = await asyncio.gather(*(w.drain(DRAIN_SECONDS) for w in self._workers))
        for worker, all_taken, all_sent in zip(self._workers, taken, sent, strict=True):
            name = worker.config.name
            if isinstance(all_taken, BaseException):
                self._report.warn(f"the last changes could not be read: {all_taken}", map=name)
            elif not (all_taken and all_sent):
                self._report.warn(
                    "some changes were not published: the broker did not take them", map=name
                )

    async def _watch(self, applier: Applier) -> None:
        """Write the status, warn of losses, and end the node when a part of it has ended."""
        while True:
            self._write_status()
            self._save_positions()
            for worker in self._workers:
                worker.report_losses()
            self._capturing.check()
            if applier.failure is not None:
                raise applier.failure
            if self._embedded is not None and self._embedded.failed.is_set():
                raise UnavailableError(
                    "nats-server: the embedded one ends again and again",
                    hint=f"see {self._embedded.log_path}",
                )
            await asyncio.sleep(STATUS_SECONDS)

    def _save_positions(self) -> None:
        for worker in self._workers:
            worker.save_position()
        try:
            self._positions.save()
        except OSError as error:
            self._report.warn_once(f"positions cannot be saved: {error}")

    def _write_status(self) -> None:
        """A full disk must not end replication."""
        try:
            self._state.write("status.json", self.status())
        except OSError as error:
            self._report.warn_once(f"status cannot be written: {error}")

    def status(self) -> dict[str, object]:
        """All that is known of this node, for ``status.json``."""
        assert self._bus is not None
        assert self._inbox is not None
        return {
            "node": self._config.node.name,
            "cluster": self._config.node.cluster,
            "version": __version__,
            "process": os.getpid(),
            "started": self._started,
            "written": time.time(),
            "dry_run": self._dry_run,
            "capture": self._capturing.status(),
            "broker": asdict(self._bus.state),
            "inbox": asdict(self._inbox.statistics()),
            "maps": {w.config.name: w.status() for w in self._workers},
        }

    def _source_failed(self, name: str, error: Exception) -> None:
        self._report.warn_once(f"capture of a map failed: {error}", map=name)

    def _map_trouble(self, name: str, error: BridgeError) -> None:
        self._report.warn_once(str(error), map=name, hint=error.hint)


async def _unless(stop: asyncio.Event, work: Coroutine[object, object, T]) -> T | None:
    """The result of ``work``, or ``None`` when ``stop`` came first."""
    task = asyncio.ensure_future(work)
    stopping = asyncio.ensure_future(stop.wait())
    await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if task.done():
        return task.result()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    return None
