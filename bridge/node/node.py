"""One node from start to end: broker, capture, writer thread, one worker per map."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from dataclasses import asdict, replace
from typing import TypeVar

from bridge import __version__
from bridge.apply.applier import Applier
from bridge.apply.inbox import Inbox
from bridge.bus.board import Standing
from bridge.bus.control import ControlServer
from bridge.config.problems import ConfigError, Problem
from bridge.config.settings import Config
from bridge.core.snapshots import Triggers
from bridge.errors import BridgeError
from bridge.node.allocator import give_back_memory
from bridge.node.announcing import Announcer
from bridge.node.broker import Broker, connect
from bridge.node.capturing import Capturing
from bridge.node.control import Control, MapView
from bridge.node.fleet import Fleet
from bridge.node.halts import Halts
from bridge.node.health import Health
from bridge.node.instance import StateDirectory
from bridge.node.neighbourhood import service_of, watch_neighbours
from bridge.node.positions import Positions
from bridge.node.privileges import Privileges, needed
from bridge.node.reloading import Changes, Reloader, changes_between
from bridge.node.report import Report
from bridge.node.requests import RequestFailedError, Requests
from bridge.node.services import Services
from bridge.node.verdicts import Verdicts

T = TypeVar("T")

STATUS_SECONDS = 0.5
DRAIN_SECONDS = 10.0


class Node:
    """Owns what the maps share. ``run`` is called once."""

    def __init__(
        self,
        config: Config,
        report: Report,
        state: StateDirectory,
        reread: Callable[[], Config],
        *,
        dry_run: bool = False,
    ) -> None:
        self._config = config
        self._report = report
        self._state = state
        self._started = time.time()
        self._document: dict[str, object] = {}  # as it was told last
        self._broker: Broker | None = None
        self._inbox: Inbox | None = None
        self._fleet: Fleet | None = None
        self._capturing = Capturing(config, self._source_failed)
        self._positions = Positions(state)
        self._halts = Halts(state)
        self._verdicts = Verdicts()
        self._dry_run = dry_run
        self._announcer: Announcer | None = None
        self._requests = Requests(state.path, self._handle)
        self._privileges = Privileges(drop=config.security.drop_capabilities)
        self._health = Health(config, report, self._privileges.drop_all)
        self._reloader = Reloader(reread, self._take, self._health.reloading, report)

    def reload(self) -> None:
        """Have the configuration read again, as soon as the maps are being served."""
        self._reloader.ask()

    async def run(self, stop: asyncio.Event) -> None:
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._health)
            started = await _unless(stop, self._start(stack))
            if started is None:
                return
            await self._serve(stop, started)

    async def _start(self, stack: AsyncExitStack) -> Applier:
        """Bring up what the maps need, in the order in which the parts depend on each other."""
        stack.push_async_callback(asyncio.to_thread, self._capturing.close)
        self._health.step("attaching the probes and proving what they see")
        await self._privileges.in_full(self._capturing.attach)
        self._drop_privileges()
        self._capturing.start()
        self._report.say("capture ready", **self._capturing.summary())
        self._health.step("connecting to the broker")
        broker = self._broker = await connect(self._config, stack, self._report)
        self._inbox = Inbox(self._config.limits.inbox_bytes, asyncio.get_running_loop())
        applier = Applier(
            self._inbox, report=self._map_trouble, on_start=self._capturing.own_thread
        )
        await asyncio.to_thread(applier.start)
        services = Services(
            schemas=broker.schemas(),
            cluster=self._config.node.cluster,
            node=self._config.node.name,
            bus=broker.bus,
            capturing=self._capturing,
            inbox=self._inbox,
            applier=applier,
            report=self._report,
            outbox_bytes=self._config.limits.outbox_bytes,
            positions=self._positions,
            snapshots=broker.snapshots(),
            triggers=Triggers(self._config.snapshots.seconds, self._config.snapshots.bytes),
            halts=self._halts,
            dry_run=self._dry_run,
        )
        self._requests.clear()
        stack.push_async_callback(self._requests.close)
        if not self._dry_run:  # others are not to count on a map that nothing is written to
            self._announcer = Announcer(broker.board(), self._report)
        self._fleet = Fleet(self._config.maps, services)
        return applier

    def _drop_privileges(self) -> None:
        transport = self._capturing.transport
        self._privileges.drop(needed(self._config, self._capturing.mode, transport))
        if self._privileges.beyond:
            self._report.warn(
                "threads of a library have kept capabilities", threads=self._privileges.beyond
            )

    async def _serve(self, stop: asyncio.Event, applier: Applier) -> None:
        assert self._broker is not None
        assert self._fleet is not None
        self._health.step("joining the maps")
        fleet = asyncio.create_task(self._fleet.run(), name="fleet")
        status = asyncio.create_task(self._watch(applier), name="status")
        control = asyncio.create_task(self._control().run(), name="control")
        service = asyncio.create_task(self._service().run(), name="service")
        reloads = asyncio.create_task(self._reloader.run(), name="reloads")
        # Not before capabilities were dropped: the thread that it takes would keep them.
        memory = asyncio.create_task(give_back_memory(), name="memory")
        looking = watch_neighbours(
            self._broker.bus, self._config.node.cluster, self._health.neighbours
        )
        neighbours = asyncio.create_task(looking, name="neighbours")
        stopping = asyncio.create_task(stop.wait(), name="stop")
        everything = [fleet, status, control, service, reloads, memory, neighbours, stopping]
        running = set(everything)
        try:
            failure: BaseException | None = None
            while not stop.is_set() and failure is None:
                done, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                failure = next((e for t in done if (e := t.exception()) is not None), None)
            self._health.stopping()
            await self._wind_down()
            if failure is not None:
                raise failure
        finally:
            for task in everything:
                task.cancel()
            await asyncio.gather(*everything, return_exceptions=True)
            await self._fleet.cancel()
            if self._announcer is not None:
                last = [replace(one, synced=False, state="stopped") for one in self._standings()]
                await self._announcer.close(last)
            await asyncio.to_thread(applier.stop, DRAIN_SECONDS)
            self._save_positions()
            for life in self._fleet.lives:
                await life.close()

    def _control(self) -> ControlServer:
        assert self._broker is not None
        node = self._config.node
        control = Control(node.cluster, node.name, self._views, self._halts, self._verdicts)
        return ControlServer(self._broker.bus.link, control.subjects, control.handle)

    def _service(self) -> ControlServer:
        """Beside questions about maps: a node that reads a large map for one is not silent."""
        assert self._broker is not None
        service = service_of(self._config, lambda: self._document)
        return ControlServer(self._broker.bus.link, service.subjects(), service.handle)

    def _views(self) -> dict[str, MapView]:
        lives = [] if self._fleet is None else self._fleet.lives
        views = {life.config.name: life.view() for life in lives}
        return {name: view for name, view in views.items() if view is not None}

    async def _take(self, config: Config) -> Changes:
        """Put another configuration in force. Raises ``ConfigError``: nothing was changed."""
        assert self._fleet is not None
        lacks = self._privileges.lacks(config.maps)
        if lacks:
            names = ", ".join(sorted(one.name for one in lacks))
            reason = f"need {names}, which was given up after the start"
            raise ConfigError("configuration", [Problem("maps", reason)], hint="restart the bridge")
        problems = await self._fleet.judge(config.maps)
        if problems:
            raise ConfigError("configuration", problems)
        changes = changes_between(self._config, config)
        self._config = replace(self._config, maps=config.maps)
        self._health.reconfigure(self._config)
        await self._fleet.reconfigure(config.maps)
        unseen = self._capturing.without_probes(config.maps)
        if unseen:
            self._report.warn(
                "no probes were attached at the start: maps are swept until a restart", maps=unseen
            )
        return changes

    async def _wind_down(self) -> None:
        """Empty the way out: rings into outboxes, outboxes into the stream."""
        assert self._fleet is not None
        lives = self._fleet.lives
        taken = await asyncio.gather(
            *(one.stop_capturing() for one in lives), return_exceptions=True
        )
        sent = await asyncio.gather(*(one.drain(DRAIN_SECONDS) for one in lives))
        for life, all_taken, all_sent in zip(lives, taken, sent, strict=True):
            name = life.config.name
            if isinstance(all_taken, BaseException):
                self._report.warn(f"the last changes could not be read: {all_taken}", map=name)
            elif not (all_taken and all_sent):
                self._report.warn(
                    "some changes were not published: the broker did not take them", map=name
                )

    async def _watch(self, applier: Applier) -> None:
        """Write the status, warn of losses, and end the node when a part of it has ended."""
        assert self._broker is not None
        assert self._fleet is not None
        while True:
            document = self._write_status()
            self._save_positions()
            self._look_for_requests()
            if self._announcer is not None:
                self._announcer.tell(self._standings())
            for life in self._fleet.lives:
                life.report_losses()
            self._capturing.check()
            if applier.failure is not None:
                raise applier.failure
            self._broker.check()
            self._health.tell(document)
            await asyncio.sleep(STATUS_SECONDS)

    def _save_positions(self) -> None:
        assert self._fleet is not None
        for life in self._fleet.lives:
            life.save_position()
        try:
            self._positions.save()
        except OSError as error:
            self._report.warn_once(f"positions cannot be saved: {error}")

    def _standings(self) -> list[Standing]:
        """How the maps of this node stand, for the other nodes."""
        lives = [] if self._fleet is None else self._fleet.lives
        return [life.standing(self._config.node.name) for life in lives]

    def _look_for_requests(self) -> None:
        try:
            self._requests.look()
        except OSError as error:
            self._report.warn_once(f"requests cannot be read: {error}")

    async def _handle(self, action: str, name: str) -> dict[str, object]:
        """Do what another command asks for; its answer."""
        if action == "reload":
            changes = await self._reloader.reload()
            self._write_status()  # who asked may look there next
            return {"node": self._config.node.name, **changes.as_dict()}
        lives = [] if self._fleet is None else self._fleet.lives
        life = next((one for one in lives if one.config.name == name), None)
        if life is None or action != "snapshot":
            raise RequestFailedError(f"request: {action} of map {name} is not known")
        return await life.snapshot()

    def _write_status(self) -> dict[str, object]:
        """A full disk must not end replication."""
        document = self._document = self.status()
        try:
            self._state.write("status.json", document)
        except OSError as error:
            self._report.warn_once(f"status cannot be written: {error}")
        return document

    def status(self) -> dict[str, object]:
        """All that is known of this node, for ``status.json``."""
        assert self._broker is not None
        assert self._fleet is not None
        assert self._inbox is not None
        return {
            "node": self._config.node.name,
            "cluster": self._config.node.cluster,
            "version": __version__,
            "process": os.getpid(),
            "started": self._started,
            "written": time.time(),
            "dry_run": self._dry_run,
            "security": self._privileges.status(),
            "configuration": asdict(self._reloader.counters),
            "capture": self._capturing.status(),
            "broker": asdict(self._broker.bus.state),
            "inbox": asdict(self._inbox.statistics()),
            "maps": {
                name: life.status() | self._verdicts.status(name)
                for life in self._fleet.lives
                for name in (life.config.name,)
            },
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
