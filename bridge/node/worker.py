"""One kernel map on one node, from its opening to its end: join the stream, capture, apply.

A map that takes its place later gets a worker of its own; ``life`` sees to that.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import asdict, dataclass

from bridge.apply.applier import ApplyTarget
from bridge.apply.inbox import Arrival
from bridge.apply.writer import MapWriter
from bridge.bus.outbox import Outbox
from bridge.bus.protocol import Broken, Gap, Item, Received, Subscription
from bridge.bus.publish_loop import PublishLoop
from bridge.config.settings import MapConfig
from bridge.core.fingerprints import Fingerprints
from bridge.core.replica import Replica
from bridge.errors import BridgeError
from bridge.kernel.errors import UnsupportedError
from bridge.kernel.maps import KernelMap
from bridge.kernel.support import Support, judge
from bridge.model import Origin, Position, new_incarnation
from bridge.node.ignoring import counted_bytes
from bridge.node.lane import Lane
from bridge.node.recalling import recall_own
from bridge.node.repairing import RepairPlan
from bridge.node.services import MapState, Services, StreamCounters
from bridge.node.synced import Sync, SyncGate

CAUGHT_UP_POLL_SECONDS = 0.02


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


class MapWorker:
    """Runs one map, which it owns. ``run`` ends when cancelled, or raises what made going on
    impossible.
    """

    def __init__(self, config: MapConfig, services: Services, kernel_map: KernelMap) -> None:
        """Raises ``BridgeError`` for a map that cannot be bridged like that, and closes it."""
        self.config = config
        self.services = services
        self.state = MapState.JOINING
        self.stream = StreamCounters()
        self._parts = self._assemble(kernel_map)
        self._losses_told = 0
        self._plan = RepairPlan()
        self._repairs_told = 0
        self._gate = SyncGate()

    @property
    def map(self) -> KernelMap:
        return self._parts.map

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
        except* BridgeError as group:
            self.state = MapState.FAILED
            raise group.exceptions[0] from None

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
        if self._parts.subscription is not None:
            await self._parts.subscription.close()
        await asyncio.to_thread(self.services.applier.remove, self.config.name)
        await self.close()

    async def stop_capturing(self) -> bool:
        """First step of the end: what the rings still hold goes into the outbox."""
        self.report_losses()
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
        if parts.subscription is not None:
            await parts.subscription.close()
        await asyncio.to_thread(self._close_map)

    def _close_map(self) -> None:
        with self.services.applier.standing_still():  # a look may just have it in hand
            self._parts.map.close()

    def _assemble(self, kernel_map: KernelMap) -> _Parts:
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
        fingerprints = None
        if role.publishes:
            try:
                counted = counted_bytes(self.config, kernel_map)
            except BridgeError:
                kernel_map.close()
                raise
            fingerprints = Fingerprints(info.key_size, counted)
        replica = Replica(
            origin,
            publishes=role.publishes,
            applies=role.applies,
            fingerprints=fingerprints,
            rereads=not role.applies,
        )
        outbox = None
        if role.publishes:
            outbox = Outbox(info.key_size, info.value_size, self.services.outbox_bytes)
        return _Parts(kernel_map, Lane(replica, outbox))

    async def _start_applying(self, parts: _Parts, tasks: asyncio.TaskGroup) -> None:
        parts.target = ApplyTarget(
            self.config.name, parts.lane.replica, MapWriter(parts.map), parts.lane.lock
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
        if parts.target is None:
            # What was published is in the stream: that the map is the same is all there is to note.
            if self.state == MapState.RUNNING:
                self.services.positions.note(self.config.name, parts.map.info.id, parts.log, 0)
            return
        if parts.target.rejoining:
            return
        counters = parts.target.counters
        if self.state != MapState.JOINING and not counters.unwritten and counters.sequence:
            self.services.positions.note(
                self.config.name, parts.map.info.id, parts.log, counters.sequence
            )

    async def _start_publishing(self, parts: _Parts, tasks: asyncio.TaskGroup) -> None:
        assert parts.lane.outbox is not None
        publisher = await self.services.bus.publisher(parts.lane.replica.origin)
        parts.loop = PublishLoop(
            parts.lane.replica.origin,
            parts.lane.outbox,
            publisher,
            lambda: self.services.bus.state.max_payload,
        )
        if parts.target is None:
            await self._recall_own(parts)
        parts.publishing = tasks.create_task(parts.loop.run())
        await asyncio.to_thread(
            self.services.capturing.add,
            self.config,
            parts.map,
            parts.lane,
            self._caught_up,
        )

    async def _recall_own(self, parts: _Parts) -> None:
        """Of a map that was bridged before, learn what the stream holds by this node.

        Only then can be told what was deleted meanwhile. Of a map that was made anew all is
        published that it holds, and what the old one held stays with the others.
        """
        log = await self.services.bus.log_state(self.services.cluster)
        parts.log = log.id
        name, node = self.config.name, self.services.node
        if self.services.positions.of(name, parts.map.info.id, log.id) is None:
            return
        subscription = self.services.bus.subscribe(
            self.services.cluster, [name], Position(0), log_id=log.id
        )
        try:
            found = await recall_own(subscription, node, parts.lane.recall, self._note_trouble)
        finally:
            await subscription.close()
        self.services.report.say(
            "the map lived on: it publishes what changed here", map=name, messages=found
        )

    async def _consume(self, parts: _Parts, subscription: Subscription) -> None:
        async for item in subscription:
            match item:
                case Received():
                    self.stream.received += 1
                    parts.handed = item.sequence
                    await self.services.inbox.put(Arrival(item.sequence, item.delta))
                case _:
                    self._note_trouble(item)

    def _note_trouble(self, item: Item) -> None:
        match item:
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

    def _settled(self) -> bool:
        return self.services.capturing.settled(self.config.name)

    def _caught_up(self) -> bool:
        """Whether all that was in the stream has been applied. Called from other threads too."""
        parts = self._parts
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
        if repairs.finished > self._repairs_told:
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
        if parts.target is None:
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
        """What ``status.json`` says of this map, beside what its life says."""
        sync, parts = self.sync(), self._parts
        answer: dict[str, object] = {
            "state": str(self.state),
            "synced": sync.synced,
            "behind_seconds": sync.behind_seconds if math.isfinite(sync.behind_seconds) else None,
            "id": parts.map.info.id,
            "stream": asdict(self.stream),
            "capture": asdict(parts.lane.counters)
            | {
                "losses": asdict(self.services.capturing.losses(self.config.name)),
                "repairs": asdict(self.services.capturing.repairs(self.config.name)),
                "sweeps": asdict(self.services.capturing.swept(self.config.name)),
                "dirty": parts.lane.replica.dirty_keys,
            },
        }
        if parts.loop is not None and parts.lane.outbox is not None:
            answer["outbox"] = asdict(parts.lane.outbox.statistics())
            answer["published"] = asdict(parts.loop.counters)
        if parts.target is not None:
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
