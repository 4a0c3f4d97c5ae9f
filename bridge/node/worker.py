"""One kernel map on one node, from its opening to its end: join the stream, capture, apply.

A map that takes its place later gets a worker of its own; ``life`` sees to that.
"""

from __future__ import annotations

import asyncio
import time

from bridge.bus.outbox import Outbox
from bridge.bus.protocol import LogReplacedError
from bridge.bus.publish_loop import Acked, PublishLoop
from bridge.config.settings import MapConfig
from bridge.core.snapshots import Facts
from bridge.errors import BridgeError
from bridge.kernel.maps import KernelMap
from bridge.node.control import MapView
from bridge.node.halts import is_halted
from bridge.node.layouts import announce, learn
from bridge.node.mending import Mender
from bridge.node.parts import (
    MapParts,
    assemble,
    folds_whole_log,
    make_follower,
    make_taker,
    make_target,
)
from bridge.node.recalling import Recaller
from bridge.node.services import MapState, Services
from bridge.node.snapshots import SnapshotRefusedError
from bridge.node.standing import describe
from bridge.node.synced import Sync, SyncGate

CAUGHT_UP_POLL_SECONDS = 0.02


class MapWorker:
    """Runs one map, which it owns. ``run`` ends when cancelled, or raises what made going on
    impossible.
    """

    def __init__(self, config: MapConfig, services: Services, kernel_map: KernelMap) -> None:
        """Raises ``BridgeError`` for a map that cannot be bridged like that, and closes it."""
        self.config = config
        self.services = services
        self.state = MapState.JOINING
        self._parts = assemble(config, services, kernel_map)
        self._mender = Mender(config.name, services.capturing, self._parts.lane, services.report)
        self._gate = SyncGate(config.lag_seconds)
        self._recaller = Recaller(config.name, services)  # of a map that is only published
        self._adding: asyncio.Task[None] | None = None

    @property
    def map(self) -> KernelMap:
        return self._parts.map

    def adopt(self, config: MapConfig) -> None:
        """Go on under a configuration that differs in its lag limit and metrics only."""
        self.config = config
        self._gate.lag_seconds_max = config.lag_seconds

    async def run(self) -> None:
        parts = self._parts
        try:
            async with asyncio.TaskGroup() as tasks:
                if self.config.role.applies:
                    await self._start_applying(parts, tasks)
                if self.config.role.publishes:
                    await self._start_publishing(parts, tasks)
                while not (self._caught_up() and self._settled()):  # noqa: ASYNC110 - the writer thread moves it
                    await asyncio.sleep(CAUGHT_UP_POLL_SECONDS)
                self.state = MapState.RUNNING
                if parts.target is not None and parts.target.gate is not None:
                    parts.target.gate.armed = True
        except BaseExceptionGroup as group:
            self.state = MapState.FAILED
            for kind in (LogReplacedError, BridgeError):  # the former takes all others' meaning
                if (found := group.subgroup(kind)) is not None:
                    raise _one_of(found) from None
            raise

    async def abandon(self) -> None:
        """The log was made anew: what was to be published is compared with it at the next join."""
        await self.stop_capturing()
        await asyncio.to_thread(self.services.applier.remove, self.config.name)
        await self.close()
        self.services.positions.disown(self.config.name)  # last: until here it may be noted again

    async def leave(self) -> None:
        """The map has gone, or another one took its place; ``run`` has been cancelled.

        Returns when all that was captured is in the stream, however long the broker is away: a map
        that comes next could not join before, nor publish beside this one.
        """
        self.save_position()
        self.state = MapState.LEAVING
        if not await self.stop_capturing():
            self.services.report.warn(
                "the last changes of the old map were too many to be taken", map=self.config.name
            )
        await self.drain(None)
        if self._parts.publishing is not None:
            await self._parts.publishing  # raises what ended it
        if self._parts.follower is not None:
            await self._parts.follower.close()
        await asyncio.to_thread(self.services.applier.remove, self.config.name)
        await self.close()

    async def stop_capturing(self) -> bool:
        """First step of the end: what the rings still hold goes into the outbox."""
        self.report_losses()
        if self._adding is not None:  # a thread goes on when the one that waits for it is cancelled
            await asyncio.wait({self._adding})
        return await asyncio.to_thread(self.services.capturing.remove, self.config.name)

    async def drain(self, deadline_seconds: float | None) -> bool:
        """Second step: the outbox goes out; whether all of it did. ``None``: no deadline.

        Where publishing was broken off it is taken up again; where it has failed there is nothing
        to wait for.
        """
        parts = self._parts
        if parts.loop is None or parts.publishing is None:
            return True
        outbox = parts.lane.outbox
        assert outbox is not None
        outbox.close()
        if parts.publishing.cancelled():
            parts.publishing = asyncio.create_task(parts.loop.run())
        await asyncio.wait({parts.publishing}, timeout=deadline_seconds)
        return outbox.statistics().rows + parts.loop.in_flight == 0

    async def close(self) -> None:
        """Last step, after ``run`` has ended and the writer thread has let go of the map."""
        parts = self._parts
        self.state = MapState.STOPPED if self.state != MapState.FAILED else self.state
        if parts.publishing is not None:
            parts.publishing.cancel()
            await asyncio.gather(parts.publishing, return_exceptions=True)
        if parts.follower is not None:
            await parts.follower.close()
        await asyncio.to_thread(self._close_map)

    def _close_map(self) -> None:
        with self.services.applier.standing_still():  # a look may just have it in hand
            self._parts.map.close()

    async def _start_applying(self, parts: MapParts, tasks: asyncio.TaskGroup) -> None:
        parts.target = make_target(self.config, self.services, parts)
        follower = make_follower(self.config, self.services, parts, learn=self._learn)
        await follower.prepare()
        self.services.applier.add(parts.target)
        parts.follower = follower
        tasks.create_task(follower.run())
        if folds_whole_log(self.config) or self.services.dry_run:
            return
        parts.taker = make_taker(self.config, self.services, parts, facts=self._facts)
        tasks.create_task(parts.taker.run())

    def _facts(self) -> Facts:
        """How the map stands, for a snapshot of it."""
        parts, capturing, name = self._parts, self.services.capturing, self.config.name
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
            repairing=self._mender.is_mending(losses),
            replaced=0 if lane.outbox is None else lane.outbox.statistics().rows_merged,
            unwritten=counters.unwritten + counters.forgotten,
            watermark=lane.watermark,
            captured=lane.replica.captured,
            stored=parts.loop.stored if parts.loop is not None else 0,
        )

    def save_position(self) -> None:
        """Note how far the map has come, unless changes wait that the kernel did not take."""
        parts = self._parts
        if parts.target is None:
            # What was published is in the stream: that the map is the same is all there is to note.
            if self.state == MapState.RUNNING:
                self.services.positions.note(self.config.name, parts.map.info.id, parts.log, 0)
            return
        if self.services.dry_run or parts.target.rejoining:
            return
        follower, counters = parts.follower, parts.target.counters
        if follower is None or not follower.following or counters.unwritten:
            return
        if self.state != MapState.JOINING:
            follower.save_position()

    async def _start_publishing(self, parts: MapParts, tasks: asyncio.TaskGroup) -> None:
        assert parts.lane.outbox is not None
        if not self.services.dry_run:
            await self._open_publishing(parts, parts.lane.outbox)
        if parts.follower is not None:
            parts.follower.publishing = parts.loop
        else:
            parts.log = await self._recaller.recall(parts.map.info.id, parts.lane.recall)
        if parts.loop is not None:
            parts.publishing = tasks.create_task(parts.loop.run())
        adding = asyncio.to_thread(
            self.services.capturing.add,
            self.config,
            parts.map,
            parts.lane,
            self._caught_up,
        )
        self._adding = asyncio.create_task(adding)
        await asyncio.shield(self._adding)

    async def _open_publishing(self, parts: MapParts, outbox: Outbox) -> None:
        services = self.services
        layout = await announce(
            services.schemas,
            services.cluster,
            self.config.name,
            parts.layout,
            services.report,
        )
        publisher = await services.bus.publisher(parts.lane.replica.origin)
        parts.loop = PublishLoop(
            parts.lane.replica.origin,
            outbox,
            publisher,
            lambda: services.bus.state.max_payload,
            layout=layout,
            on_ack=_ignored if parts.follower is None else parts.follower.acked,
        )

    def _settled(self) -> bool:
        return self.services.capturing.settled(self.config.name)

    async def _learn(self, layout: int) -> None:
        """A sender's layout, before its changes are judged."""
        services, fitter = self.services, self._parts.fitter
        if fitter.needs(layout):
            await learn(services.schemas, fitter, self.config.name, layout, services.report)

    def _caught_up(self) -> bool:
        """Whether all that was in the stream has been applied. Called from other threads too."""
        parts = self._parts
        if self.state == MapState.RUNNING or not self.config.role.applies:
            return True
        return parts.follower is not None and parts.follower.caught_up()

    async def snapshot(self) -> dict[str, object]:
        """Take a snapshot now; raises why not."""
        taker = self._parts.taker
        if taker is None:
            raise self._no_snapshot()
        manifest = await taker.take_now()
        return {
            "map": self.config.name,
            "entries": manifest.rows,
            "position": manifest.position,
            "parts": len(manifest.parts),
            "seconds": round(taker.counters.seconds, 3),
        }

    def _no_snapshot(self) -> SnapshotRefusedError:
        reason, hint = "the map is not open yet", "ask a node that applies the map"
        if not self.config.role.applies:
            reason = "the map is only published here"
        elif self.services.dry_run:
            reason = "this is a dry run"
        elif folds_whole_log(self.config):
            reason = f"policy {self.config.conflict} folds the log from its beginning"
            hint = "keep the whole log of such a map"
        return SnapshotRefusedError(f"map {self.config.name}: no snapshot, {reason}", hint=hint)

    def report_losses(self) -> None:
        """Warn when changes were lost since the last call, and have that mended."""
        self._mender.look()

    def view(self) -> MapView | None:
        """The map for those who look into it beside replication, while it is open."""
        parts, target = self._parts, self._parts.target
        if self.state not in (MapState.RUNNING, MapState.JOINING):
            return None
        follower = parts.follower
        return MapView(
            parts.map,
            parts.lane,
            self.config.role,
            sequence=self.position,
            level=lambda: follower is None or follower.level(),
            counted=parts.counted,
            layout="" if parts.layout is None else f"{parts.layout_number:016x}",
            gate=None if target is None else target.gate,
            joined=self.state == MapState.RUNNING,
        )

    def sync(self) -> Sync:
        """Whether the map holds what the stream says; to be asked again and again."""
        parts, now = self._parts, time.monotonic()
        ready = self.state == MapState.RUNNING and self.services.bus.state.connected
        ready = ready and not parts.fitter.parked and not is_halted(parts.target)
        if parts.target is None or parts.follower is None:
            return self._gate.look(now, ready=ready, level=True, newest=now)
        return self._gate.look(
            now,
            ready=ready and parts.follower.caught_up(),
            level=parts.follower.level(),
            newest=parts.target.newest_at,
        )

    def position(self) -> int:
        """Everything of this map up to here in the log is written; 0 where nothing is applied."""
        follower = self._parts.follower
        return follower.position() if follower is not None else 0

    def status(self) -> dict[str, object]:
        """What ``status.json`` says of this map, beside what its life says."""
        recalled, capturing = self._recaller.counters, self.services.capturing
        return describe(self.config.name, self._parts, self.state, self.sync(), recalled, capturing)


def _one_of(group: BaseException) -> BaseException:
    """An exception out of a group, which may hold groups."""
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _ignored(acked: Acked) -> None:
    del acked
