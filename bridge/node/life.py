"""The life of a configured map: the kernel map at its place is followed, as it comes and goes.

A loader that starts anew makes new maps under the old pins and names. Each of them gets a worker of
its own, and with it an incarnation of its own in the stream; the old one's changes go out first, so
that one subject never has two writers. A map that is unpinned and pinned again at once is the same.
"""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import replace

from bridge.bus.board import Standing
from bridge.bus.protocol import LogReplacedError
from bridge.config.settings import MapConfig
from bridge.errors import BridgeError
from bridge.kernel.errors import MapClosedError, MapNotFoundError
from bridge.kernel.maps import KernelMap, open_map, open_map_id
from bridge.model import MapInfo
from bridge.node.control import MapView
from bridge.node.lookout import Sighting
from bridge.node.services import MapState, Services
from bridge.node.snapshots import SnapshotRefusedError
from bridge.node.worker import MapWorker

GONE_LOOKS = 2  # in a row without a pin, before the map counts as gone


class MapLife:
    """``run`` ends when cancelled, or raises what made going on impossible.

    ``strict``: a map that cannot be taken at the first look is such a reason. Later it is not: the
    other maps are not to suffer for one.
    """

    def __init__(self, config: MapConfig, services: Services, *, strict: bool) -> None:
        self.config = config
        self._strict = strict
        self._services = services
        self._worker: MapWorker | None = None
        self._sighting = Sighting()
        self._looked = asyncio.Event()
        self._refused: int | None = None  # id of a map that cannot be bridged
        self._lives = 0
        self._retired = False

    @property
    def followed(self) -> KernelMap | None:
        """The map that is open now."""
        return None if self._worker is None else self._worker.map

    def sighted(self, sighting: Sighting) -> None:
        """What a look has found at the map's place."""
        self._sighting = sighting
        self._looked.set()

    @property
    def retired(self) -> bool:
        """Whether the configuration does not know the map any more, or not like this."""
        return self._retired

    def retire(self) -> None:
        """Let the map go: what was captured goes out, then ``run`` ends."""
        self._retired = True
        self._looked.set()

    def adopt(self, config: MapConfig) -> bool:
        """Go on under a new configuration; ``False``: the map has to join anew for it."""
        old = self.config
        if replace(old, lag_seconds=config.lag_seconds, metrics=config.metrics) != config:
            return False
        self.config = config
        if self._worker is not None:
            self._worker.adopt(config)
        return True

    async def run(self) -> None:
        while not self._retired:
            worker = await self._appear()
            if worker is not None:
                await self._live(worker)

    async def _look(self) -> Sighting:
        await self._looked.wait()
        self._looked.clear()
        return self._sighting

    async def _appear(self) -> MapWorker | None:
        """Look for the kernel map until it is there; ``None``: nobody wants it any more."""
        waiting = False
        while True:
            found = await self._look()
            if self._retired:
                return None
            if found.error is not None:
                self._trouble(found.error)
            worker = self._open(found.info) if found.info is not None else None
            self._strict = False
            if worker is not None:
                return worker
            if not waiting:
                self._say("waiting for the map to appear", at=str(self.config.selector))
            waiting = True

    def _open(self, info: MapInfo) -> MapWorker | None:
        """``None`` when the map has gone since the look, or cannot be bridged."""
        if info.id == self._refused:
            return None
        try:
            pinned = self.config.selector.pin is not None
            opened = open_map(self.config.selector) if pinned else open_map_id(info.id)
        except MapNotFoundError:
            return None
        except BridgeError as error:  # the next look tries again
            self._trouble(error)
            return None
        try:
            worker = MapWorker(self.config, self._services, opened)
        except BridgeError as error:
            self._refused = opened.info.id
            self._trouble(error)
            return None
        self._lives += 1
        self._say("map found", id=opened.info.id, role=str(self.config.role))
        return worker

    def _trouble(self, error: BridgeError) -> None:
        if self._strict:
            raise error
        self._services.report.warn_once(str(error), map=self.config.name, hint=error.hint)

    async def _live(self, worker: MapWorker) -> None:
        self._worker = worker
        running = asyncio.create_task(worker.run())
        leaving = asyncio.create_task(self._until_left(worker.map))
        replaced = False
        try:
            await asyncio.wait({running, leaving}, return_when=asyncio.FIRST_COMPLETED)
            ended = running.exception() if running.done() else None
            replaced = isinstance(ended, LogReplacedError)
            if ended is not None and not isinstance(ended, MapClosedError | LogReplacedError):
                raise ended
            leaving.result() if leaving.done() else None
        finally:
            for task in (running, leaving):
                task.cancel()
            await asyncio.gather(running, leaving, return_exceptions=True)
        if replaced:
            self._services.report.warn(f"{ended}: the map joins anew", map=self.config.name)
            await worker.abandon()
        else:
            await worker.leave()
        self._worker = None

    async def _until_left(self, kernel_map: KernelMap) -> None:
        map_id, missed, told = kernel_map.info.id, 0, False
        while True:
            found = await self._look()
            if self._retired:
                self._say("the map is let go: the configuration has changed", id=map_id)
                return
            if found.info is not None and found.info.id != map_id:
                self._say("another map has taken its place", id=found.info.id, was=map_id)
                return
            missed = 0 if found.info is not None else missed + 1
            if missed >= (GONE_LOOKS if self.config.selector.pin is not None else 1):
                self._say("the map has gone", id=map_id)
                return
            if found.newer is not None and not told:
                told = True
                self._say(
                    "a newer map has the same name: it is taken when nobody else has this one",
                    id=map_id,
                    newer=found.newer.id,
                )

    def _say(self, text: str, **fields: object) -> None:
        self._services.report.say(text, map=self.config.name, **fields)

    # --- what the node asks of a map, open or not ------------------------------------------------

    async def stop_capturing(self) -> bool:
        """First step of the end: what the rings still hold goes into the outbox."""
        return self._worker is None or await self._worker.stop_capturing()

    async def drain(self, deadline_seconds: float) -> bool:
        """Second step: the outbox goes out; whether all of it did."""
        return self._worker is None or await self._worker.drain(deadline_seconds)

    async def close(self) -> None:
        """Last step, after ``run`` has ended and the writer thread has stopped."""
        if self._worker is not None:
            await self._worker.close()

    async def snapshot(self) -> dict[str, object]:
        """Take a snapshot now; raises why not."""
        if self._worker is None:
            raise SnapshotRefusedError(
                f"map {self.config.name}: no snapshot, the map is not there",
                hint="load the program that makes it",
            )
        return await self._worker.snapshot()

    def view(self) -> MapView | None:
        """The map for those who look into it beside replication, while it is open."""
        return None if self._worker is None else self._worker.view()

    def standing(self, node: str) -> Standing:
        """How the map stands, for the other nodes."""
        worker = self._worker
        behind = math.inf if worker is None else (sync := worker.sync()).behind_seconds
        return Standing(
            node=node,
            map=self.config.name,
            synced=worker is not None and sync.synced,
            state=str(MapState.WAITING if worker is None else worker.state),
            behind_seconds=behind if math.isfinite(behind) else None,
            position=0 if worker is None else worker.position(),
            written=time.time(),
        )

    def save_position(self) -> None:
        if self._worker is not None:
            self._worker.save_position()

    def report_losses(self) -> None:
        if self._worker is not None:
            self._worker.report_losses()

    def status(self) -> dict[str, object]:
        """What ``status.json`` says of this map. ``lives``: kernel maps that stood at its place."""
        answer: dict[str, object] = {
            "state": str(MapState.WAITING),
            "synced": False,
            "behind_seconds": None,
            "role": str(self.config.role),
            "selector": str(self.config.selector),
            "lives": self._lives,
        }
        return answer if self._worker is None else answer | self._worker.status()
