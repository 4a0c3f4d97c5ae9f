"""The life of one map on one node: wait for it, join the stream, capture it, apply to it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import time
from dataclasses import asdict, dataclass, field

from bridge.apply.applier import Applier, ApplyTarget
from bridge.apply.dry import DryWriter
from bridge.apply.inbox import Arrival, Inbox
from bridge.apply.writer import MapWriter
from bridge.bus.outbox import Outbox
from bridge.bus.protocol import Broken, Bus, Gap, Received, Subscription
from bridge.bus.publish_loop import PublishLoop
from bridge.config.settings import MapConfig
from bridge.core.fingerprints import Fingerprints
from bridge.core.replica import Replica
from bridge.errors import BridgeError, Exit
from bridge.kernel.errors import MapNotFoundError, UnsupportedError
from bridge.kernel.maps import KernelMap, open_map
from bridge.kernel.support import Support, judge
from bridge.model import Origin, Position, new_incarnation
from bridge.node.capturing import Capturing
from bridge.node.control import MapView
from bridge.node.halts import Halts, gate_of, halt_status, is_halted, until_open
from bridge.node.lane import Lane
from bridge.node.policies import folding_of
from bridge.node.positions import Positions
from bridge.node.repairing import RepairPlan
from bridge.node.report import Report
from bridge.node.synced import Sync, SyncGate

SEARCH_SECONDS = 0.5
CAUGHT_UP_POLL_SECONDS = 0.02
REPLACED_POLL_SECONDS = 1.0


class MapReplacedError(BridgeError):
    """Another map stands at the pin now: what holds the old one would bridge what nobody uses."""

    exit_code = Exit.TEMPORARY


class MapState(enum.StrEnum):
    """Where a map is in its life."""

    WAITING = "waiting"  # for the kernel map to appear
    JOINING = "joining"  # reading the stream up to what was its end
    RUNNING = "running"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(slots=True)
class StreamCounters:
    """What was read of the stream for one map."""

    received: int = 0
    broken: int = 0
    gaps: int = 0


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of a node that all maps share."""

    cluster: str
    node: str
    bus: Bus
    capturing: Capturing
    inbox: Inbox
    applier: Applier
    report: Report
    outbox_bytes: int
    positions: Positions
    halts: Halts
    dry_run: bool = False  # capture and judge, write and publish nothing


@dataclass(slots=True)
class _Parts:
    """What exists while the map is open."""

    map: KernelMap
    lane: Lane
    target: ApplyTarget | None = None
    loop: PublishLoop | None = None
    publishing: asyncio.Task[None] | None = None
    subscription: Subscription | None = None
    handed: int = 0  # stream sequence of the last message on its way to the writer thread
    log: str = ""  # id of the log that is read


@dataclass(slots=True)
class MapWorker:
    """Runs one map. ``run`` ends when cancelled, or raises what made going on impossible."""

    config: MapConfig
    services: Services
    state: MapState = MapState.WAITING
    stream: StreamCounters = field(default_factory=StreamCounters)
    _parts: _Parts | None = None
    _losses_told: int = 0
    _plan: RepairPlan = field(default_factory=RepairPlan)
    _repairs_told: int = 0
    _gate: SyncGate = field(default_factory=SyncGate)

    async def run(self) -> None:
        parts = self._parts = self._open(await self._find())
        try:
            async with asyncio.TaskGroup() as tasks:
                self.state = MapState.JOINING
                if self.config.role.applies:
                    await self._start_applying(parts, tasks)
                if self.config.role.publishes:
                    await self._start_publishing(parts, tasks)
                while not self._caught_up():  # noqa: ASYNC110 - the writer thread moves it
                    await asyncio.sleep(CAUGHT_UP_POLL_SECONDS)
                self.state = MapState.RUNNING
                if parts.target is not None and parts.target.gate is not None:
                    parts.target.gate.armed = True
                await self._until_replaced(parts.map.info.id)
        except* BridgeError as group:
            self.state = MapState.FAILED
            raise group.exceptions[0] from None

    async def _until_replaced(self, map_id: int) -> None:
        """Watch the pin. One that is gone says nothing: programs may use the map without it."""
        pin = self.config.selector.pin
        while True:
            await asyncio.sleep(REPLACED_POLL_SECONDS)
            if pin is None:
                continue
            with contextlib.suppress(MapNotFoundError), open_map(self.config.selector) as found:
                if found.info.id != map_id:
                    raise MapReplacedError(
                        f"map {self.config.name}: replaced, another one is pinned at {pin} now "
                        f"(id {found.info.id}, was {map_id})",
                        hint="start the bridge again: it then bridges the new map",
                    )

    async def stop_capturing(self) -> bool:
        """First step of the end: what the rings still hold goes into the outbox."""
        self.report_losses()
        return await asyncio.to_thread(self.services.capturing.remove, self.config.name)

    async def drain(self, deadline_seconds: float) -> bool:
        """Second step: the outbox goes out; whether all of it did.

        Where another part of this map has failed, publishing was broken off and is taken up again;
        where publishing itself has failed, there is nothing to wait for.
        """
        parts = self._parts
        if parts is None or parts.loop is None or parts.publishing is None:
            return True
        outbox = parts.lane.outbox
        assert outbox is not None
        outbox.close()
        publishing = parts.publishing
        if publishing.cancelled():
            publishing = asyncio.create_task(parts.loop.run())
        await asyncio.wait({publishing}, timeout=deadline_seconds)
        if publishing is not parts.publishing:
            publishing.cancel()
            await asyncio.gather(publishing, return_exceptions=True)
        return outbox.statistics().rows + parts.loop.in_flight == 0

    async def close(self) -> None:
        """Last step, after the tasks have ended and the writer thread has stopped."""
        parts, self._parts = self._parts, None
        self.state = MapState.STOPPED if self.state != MapState.FAILED else self.state
        if parts is not None:
            if parts.subscription is not None:
                await parts.subscription.close()
            parts.map.close()

    async def _find(self) -> KernelMap:
        """Look for the kernel map until it is there."""
        selector = self.config.selector
        waiting = False
        while True:
            try:
                found = open_map(selector)
            except MapNotFoundError:
                if not waiting:
                    self.services.report.say(
                        "waiting for the map to appear", map=self.config.name, at=str(selector)
                    )
                waiting = True
                await asyncio.sleep(SEARCH_SECONDS)
                continue
            self.services.report.say(
                "map found", map=self.config.name, id=found.info.id, role=str(self.config.role)
            )
            return found

    def _open(self, kernel_map: KernelMap) -> _Parts:
        role, info = self.config.role, kernel_map.info
        verdict = judge(info)
        if verdict.support is Support.NO:
            kernel_map.close()
            raise UnsupportedError(
                f"map {self.config.name}: cannot be bridged, {verdict.reason}",
                hint="`mapbridge maps --all` lists what can be",
            )
        origin = Origin(
            self.services.cluster, self.config.name, self.services.node, new_incarnation()
        )
        replica = Replica(
            origin,
            publishes=role.publishes,
            applies=role.applies,
            fingerprints=Fingerprints(info.key_size) if role.publishes else None,
            folding=folding_of(self.config, info),
        )
        outbox = None
        if role.publishes:
            outbox = Outbox(info.key_size, info.value_size, self.services.outbox_bytes)
        return _Parts(kernel_map, Lane(replica, outbox, dry=self.services.dry_run))

    async def _start_applying(self, parts: _Parts, tasks: asyncio.TaskGroup) -> None:
        writer = DryWriter(parts.map) if self.services.dry_run else MapWriter(parts.map)
        gate = gate_of(self.config, parts.lane.replica.origin, parts.map, self.services)
        parts.target = ApplyTarget(
            self.config.name, parts.lane.replica, writer, parts.lane.lock, gate=gate
        )
        await self._recall(parts, parts.target)
        self.services.applier.add(parts.target)
        parts.subscription = self.services.bus.subscribe(
            self.services.cluster, [self.config.name], Position(0), log_id=parts.log
        )
        tasks.create_task(self._consume(parts, parts.subscription))

    async def _recall(self, parts: _Parts, target: ApplyTarget) -> None:
        """Find out whether this very map was bridged before, and how far it had come.

        A map that only applies is loaded as a whole each time: nothing in it is its own.
        """
        log = await self.services.bus.log_state(self.services.cluster)
        parts.log = log.id
        saved = self.services.positions.of(self.config.name, parts.map.info.id, log.id)
        if saved is None or saved > log.last or not self.config.role.publishes:
            return
        parts.lane.replica.rejoin(saved)
        target.rejoining = True
        self.services.report.say(
            "the map lived on: it takes what others changed, and publishes what changed here",
            map=self.config.name,
            position=saved,
        )

    def save_position(self) -> None:
        """Note how far the map has come, unless changes wait that the kernel did not take."""
        parts = self._parts
        if parts is None or parts.target is None or parts.target.rejoining:
            return
        if self.services.dry_run:
            return
        counters = parts.target.counters
        if self.state != MapState.JOINING and not counters.unwritten and counters.sequence:
            self.services.positions.note(
                self.config.name, parts.map.info.id, parts.log, counters.sequence
            )

    async def _start_publishing(self, parts: _Parts, tasks: asyncio.TaskGroup) -> None:
        assert parts.lane.outbox is not None
        if not self.services.dry_run:
            publisher = await self.services.bus.publisher(parts.lane.replica.origin)
            parts.loop = PublishLoop(
                parts.lane.replica.origin,
                parts.lane.outbox,
                publisher,
                lambda: self.services.bus.state.max_payload,
            )
            parts.publishing = tasks.create_task(parts.loop.run())
        await asyncio.to_thread(
            self.services.capturing.add,
            self.config,
            parts.map,
            parts.lane,
            self._caught_up,
            rejoins=parts.target is not None and parts.target.rejoining,
        )

    async def _consume(self, parts: _Parts, subscription: Subscription) -> None:
        async for item in subscription:
            match item:
                case Received():
                    self.stream.received += 1
                    parts.handed = item.sequence
                    await until_open(parts.target)
                    await self.services.inbox.put(Arrival(item.sequence, item.delta))
                case Broken():
                    self.stream.broken += 1
                    self.services.report.warn_once(
                        "message skipped", subject=item.subject, reason=item.reason
                    )
                case Gap():
                    self.stream.gaps += 1
                    self.services.report.warn(
                        "messages expired before they were read",
                        map=self.config.name,
                        first=item.first_missing,
                        last=item.last_missing,
                    )

    def _caught_up(self) -> bool:
        """Whether all that was in the stream has been applied. Called from other threads too."""
        parts = self._parts
        if parts is None:
            return False
        if self.state == MapState.RUNNING or parts.subscription is None or parts.target is None:
            return True
        if not _is_level(parts):
            return False
        if parts.target.rejoining and not parts.target.caught_up:
            parts.target.caught_up = True
            self.services.inbox.wake()
        return not parts.target.rejoining

    def report_losses(self) -> None:
        """Warn when changes were lost since the last call, and have that mended.

        The counters are read before the map is: what is lost later calls for another repair.
        """
        capturing, name = self.services.capturing, self.config.name
        losses, repairs = capturing.losses(name), capturing.repairs(name)
        if losses.total > self._losses_told:
            self._losses_told = losses.total
            self.services.report.warn(
                "changes were lost: the map will be compared with the stream",
                map=name,
                **{place: count for place, count in asdict(losses).items() if count},
            )
        if repairs.finished > self._repairs_told and self._parts is not None:
            self._repairs_told = repairs.finished
            self.services.report.say(
                "repaired: the map was compared with the stream",
                map=name,
                seconds=round(repairs.seconds, 3),
                published_so_far=self._parts.lane.counters.repaired,
            )
        if self._plan.look(time.monotonic(), losses.total, repairs):
            capturing.repair(name)

    def view(self) -> MapView | None:
        """The map for those who look into it beside replication, while it is open."""
        parts = self._parts
        if parts is None or self.state not in (MapState.RUNNING, MapState.JOINING):
            return None
        target = parts.target
        return MapView(
            parts.map,
            parts.lane,
            self.config.role,
            sequence=lambda: 0 if target is None else target.counters.sequence,
            level=lambda: _is_level(parts),
            gate=None if target is None else target.gate,
            joined=self.state == MapState.RUNNING,
        )

    def sync(self) -> Sync:
        """Whether the map holds what the stream says; to be asked again and again."""
        parts, now = self._parts, time.monotonic()
        ready = self.state == MapState.RUNNING and self.services.bus.state.connected
        ready = ready and not (parts is not None and is_halted(parts.target))
        if parts is None or parts.target is None:
            return self._gate.look(now, ready=ready, level=True, sequence=0, lag_seconds=0.0)
        counters = parts.target.counters
        return self._gate.look(
            now,
            ready=ready,
            level=_is_level(parts),
            sequence=counters.sequence,
            lag_seconds=counters.lag_seconds,
        )

    def status(self) -> dict[str, object]:
        """What ``status.json`` says of this map."""
        sync = self.sync()
        answer: dict[str, object] = {
            "state": str(self.state),
            "synced": sync.synced,
            "behind_seconds": sync.behind_seconds if math.isfinite(sync.behind_seconds) else None,
            "role": str(self.config.role),
            "selector": str(self.config.selector),
            "stream": asdict(self.stream),
        }
        parts = self._parts
        if parts is None:
            return answer
        answer["id"] = parts.map.info.id
        answer["capture"] = asdict(parts.lane.counters) | {
            "losses": asdict(self.services.capturing.losses(self.config.name)),
            "repairs": asdict(self.services.capturing.repairs(self.config.name)),
        }
        if parts.loop is not None and parts.lane.outbox is not None:
            answer["outbox"] = asdict(parts.lane.outbox.statistics())
            answer["published"] = asdict(parts.loop.counters)
        if parts.target is not None:
            answer |= halt_status(parts.target)
            answer["apply"] = asdict(parts.target.counters) | {
                "p50_seconds": parts.target.delays.percentile(0.50),
                "p99_seconds": parts.target.delays.percentile(0.99),
            }
        return answer


def _is_level(parts: _Parts) -> bool:
    """Whether nothing of the stream waits to be read or written."""
    if parts.subscription is None or parts.target is None:
        return True
    # In this order: a message that is just being handed over has left ``pending`` already.
    nothing_pending = parts.subscription.pending == 0
    return nothing_pending and parts.target.counters.sequence >= parts.handed
