"""The life of one map on one node: wait for it, join the stream, capture it, apply to it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import math
import time
from dataclasses import asdict, dataclass, field

from bridge.apply.applier import Applier, ApplyTarget
from bridge.apply.inbox import Inbox
from bridge.apply.writer import MapWriter
from bridge.bus.outbox import Outbox
from bridge.bus.protocol import Bus, LogReplacedError
from bridge.bus.publish_loop import Acked, PublishLoop
from bridge.bus.snapshots import Snapshots
from bridge.config.settings import MapConfig
from bridge.core.fingerprints import Fingerprints
from bridge.core.replica import Replica
from bridge.core.snapshots import Facts, Triggers
from bridge.errors import BridgeError, Exit
from bridge.kernel.errors import MapNotFoundError, UnsupportedError
from bridge.kernel.maps import KernelMap, open_map
from bridge.kernel.support import Support, judge
from bridge.model import Origin, new_incarnation
from bridge.node.capturing import Capturing
from bridge.node.following import Follower, StreamCounters
from bridge.node.lane import Lane
from bridge.node.positions import Positions
from bridge.node.repairing import RepairPlan
from bridge.node.report import Report
from bridge.node.snapshots import SnapshotRefusedError, SnapshotTaker
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
    snapshots: Snapshots
    triggers: Triggers


@dataclass(slots=True)
class _Parts:
    """What exists while the map is open."""

    map: KernelMap
    lane: Lane
    target: ApplyTarget | None = None
    loop: PublishLoop | None = None
    publishing: asyncio.Task[None] | None = None
    follower: Follower | None = None
    taker: SnapshotTaker | None = None


@dataclass(slots=True)
class MapWorker:
    """Runs one map. ``run`` ends when cancelled, or raises what made going on impossible."""

    config: MapConfig
    services: Services
    state: MapState = MapState.WAITING
    _parts: _Parts | None = None
    _losses_told: int = 0
    _plan: RepairPlan = field(default_factory=RepairPlan)
    _repairs_told: int = 0
    _gate: SyncGate = field(default_factory=SyncGate)

    async def run(self) -> None:
        while True:
            try:
                await self._live()
            except BaseExceptionGroup as group:
                replaced = group.subgroup(LogReplacedError)
                if replaced is None:
                    raise
                self.services.report.warn(
                    f"{replaced.exceptions[0]}: the map joins anew", map=self.config.name
                )
                await asyncio.to_thread(self.services.capturing.remove, self.config.name)
                self.services.applier.remove(self.config.name)
                self.services.inbox.discard(self.config.name)
                await self.close()
                await asyncio.sleep(SEARCH_SECONDS)

    async def _live(self) -> None:
        """From the opening of the map until something ends that: an origin of its own."""
        self.state = MapState.WAITING
        self._losses_told = self._repairs_told = 0
        self._plan, self._gate = RepairPlan(), SyncGate(self.config.lag_seconds)
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
            if parts.follower is not None:
                await parts.follower.close()
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
        )
        outbox = None
        if role.publishes:
            outbox = Outbox(info.key_size, info.value_size, self.services.outbox_bytes)
        return _Parts(kernel_map, Lane(replica, outbox))

    async def _start_applying(self, parts: _Parts, tasks: asyncio.TaskGroup) -> None:
        parts.target = ApplyTarget(
            self.config.name, parts.lane.replica, MapWriter(parts.map), parts.lane.lock
        )
        services, publishes = self.services, self.config.role.publishes
        follower = Follower(
            name=self.config.name,
            cluster=services.cluster,
            publishes=publishes,
            bus=services.bus,
            snapshots=services.snapshots,
            inbox=services.inbox,
            report=services.report,
            positions=services.positions,
            map=parts.map,
            target=parts.target,
        )
        await follower.prepare()
        services.applier.add(parts.target)
        parts.follower = follower
        tasks.create_task(follower.run())
        parts.taker = SnapshotTaker(
            name=self.config.name,
            cluster=services.cluster,
            node=services.node,
            publishes=publishes,
            bus=services.bus,
            snapshots=services.snapshots,
            map=parts.map,
            follower=follower,
            scans=services.capturing,
            triggers=services.triggers,
            facts=self._facts,
            report=services.report,
        )
        tasks.create_task(parts.taker.run())

    def _facts(self) -> Facts:
        """How the map stands, for a snapshot of it."""
        parts, capturing, name = self._parts, self.services.capturing, self.config.name
        assert parts is not None
        assert parts.follower is not None
        assert parts.target is not None
        publishes = self.config.role.publishes
        losses, lane = capturing.losses(name).total, parts.lane
        counters = parts.target.counters
        return Facts(
            settled=self.state == MapState.RUNNING
            and parts.follower.following
            and (not publishes or capturing.scanned(name)),
            losses=losses,
            repairing=losses > self._losses_told
            or self._plan.open
            or capturing.repairs(name).going_on,
            replaced=0 if lane.outbox is None else lane.outbox.statistics().rows_merged,
            unwritten=counters.unwritten + counters.forgotten,
            watermark=lane.watermark,
            captured=lane.replica.captured,
            stored=parts.loop.stored if parts.loop is not None else 0,
        )

    def save_position(self) -> None:
        """Note how far the map has come, unless changes wait that the kernel did not take."""
        parts = self._parts
        if parts is None or parts.target is None or parts.target.rejoining:
            return
        follower, counters = parts.follower, parts.target.counters
        if follower is None or not follower.following or counters.unwritten:
            return
        if self.state != MapState.JOINING:
            follower.save_position()

    async def _start_publishing(self, parts: _Parts, tasks: asyncio.TaskGroup) -> None:
        assert parts.lane.outbox is not None
        publisher = await self.services.bus.publisher(parts.lane.replica.origin)
        parts.loop = PublishLoop(
            parts.lane.replica.origin,
            parts.lane.outbox,
            publisher,
            lambda: self.services.bus.state.max_payload,
            on_ack=_ignored if parts.follower is None else parts.follower.acked,
        )
        if parts.follower is not None:
            parts.follower.publishing = parts.loop
        parts.publishing = tasks.create_task(parts.loop.run())
        await asyncio.to_thread(
            self.services.capturing.add,
            self.config,
            parts.map,
            parts.lane,
            self._caught_up,
            rejoins=parts.target is not None and parts.target.rejoining,
        )

    def _caught_up(self) -> bool:
        """Whether all that was in the stream has been applied. Called from other threads too."""
        parts = self._parts
        if parts is None:
            return False
        if self.state == MapState.RUNNING or not self.config.role.applies:
            return True
        return parts.follower is not None and parts.follower.caught_up()

    async def snapshot(self) -> dict[str, object]:
        """Take a snapshot now; raises why not."""
        taker = self._parts.taker if self._parts is not None else None
        if taker is None:
            raise SnapshotRefusedError(
                f"map {self.config.name}: no snapshot, the map "
                + ("is not open yet" if self.config.role.applies else "is only published here"),
                hint="ask a node that applies the map",
            )
        manifest = await taker.take_now()
        return {
            "map": self.config.name,
            "entries": manifest.rows,
            "position": manifest.position,
            "parts": len(manifest.parts),
            "seconds": round(taker.counters.seconds, 3),
        }

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

    def sync(self) -> Sync:
        """Whether the map holds what the stream says; to be asked again and again."""
        parts, now = self._parts, time.monotonic()
        ready = self.state == MapState.RUNNING and self.services.bus.state.connected
        if parts is None or parts.target is None or parts.follower is None:
            return self._gate.look(now, ready=ready, level=True, sequence=0, lag_seconds=0.0)
        counters = parts.target.counters
        return self._gate.look(
            now,
            ready=ready and parts.follower.caught_up(),
            level=parts.follower.level(),
            sequence=counters.sequence,
            lag_seconds=counters.lag_seconds,
        )

    def position(self) -> int:
        """Everything of this map up to here in the log is written; 0 where nothing is applied."""
        parts = self._parts
        return parts.follower.position() if parts is not None and parts.follower else 0

    def status(self) -> dict[str, object]:
        """What ``status.json`` says of this map."""
        sync = self.sync()
        answer: dict[str, object] = {
            "state": str(self.state),
            "synced": sync.synced,
            "behind_seconds": sync.behind_seconds if math.isfinite(sync.behind_seconds) else None,
            "role": str(self.config.role),
            "selector": str(self.config.selector),
            "stream": asdict(StreamCounters()),
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
            answer["trouble"] = parts.loop.trouble
        if parts.follower is not None and parts.taker is not None:
            answer["stream"] = asdict(parts.follower.counters)
            answer["trouble"] = answer.get("trouble") or parts.follower.trouble
            answer["joined"] = asdict(parts.follower.joined)
            answer["snapshots"] = asdict(parts.taker.counters)
        if parts.target is not None:
            answer["apply"] = asdict(parts.target.counters) | {
                "p50_seconds": parts.target.delays.percentile(0.50),
                "p99_seconds": parts.target.delays.percentile(0.99),
            }
        return answer


def _ignored(acked: Acked) -> None:
    del acked
