"""Hands a snapshot to the writing thread part by part, and waits until all of it is written."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import numpy as np

from bridge.apply.loading import Load
from bridge.bus.snapshots import SnapshotBrokenError, Snapshots
from bridge.core.digest import rows_digest
from bridge.core.identity import Identity
from bridge.core.joining import Plan, Way
from bridge.kernel.maps import KernelMap
from bridge.kernel.scan import scan_whole
from bridge.model import U8, Delta, DeltaBatch, Manifest

WINDOW_PARTS = 6  # between the reader and the writer thread


@dataclass(slots=True)
class Loading:
    """One loading of one snapshot. Belongs to the event loop's thread."""

    plan: Plan
    manifest: Manifest
    snapshots: Snapshots
    map: KernelMap
    identity: Identity
    hand: Callable[[int, Delta, Load], Awaitable[None]]  # to the inbox, by its place in the log
    _step: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self, *, stored: int, guarded: bool) -> None:
        """Raises ``SnapshotBrokenError`` or ``SnapshotStoreError``. The arguments: see ``Load``."""
        loop = asyncio.get_running_loop()
        load = Load(
            position=self.plan.after,
            stored=stored,
            value_size=self.manifest.value_size,
            keys_now=self._keys_now if self._sweeps_out() else None,
            wake=lambda: _wake(loop, self._step),
            guarded=guarded,
            learns=self.plan.way is Way.LEARN,
            complete=self.identity.missing_means_deleted,
        )
        manifest, after, name = self.manifest, self.plan.after, self.manifest.origin.map
        sent, first, digest = 0, 1, 0
        offset, layout = manifest.clock_offset, manifest.layout
        async for batch in self.snapshots.parts(manifest):
            digest = (digest + rows_digest(batch)) & 0xFFFF_FFFF_FFFF_FFFF
            await self.hand(after, Delta(manifest.origin, first, batch, offset, layout), load)
            sent, first = sent + 1, first + len(batch)
            await self._until(lambda: load.parts > sent - WINDOW_PARTS)  # noqa: B023
        if digest != manifest.digest:
            raise SnapshotBrokenError(f"snapshot of map {name}: its digest is another one")
        end = DeltaBatch.empty(manifest.key_size, manifest.value_size)
        await self.hand(after, Delta(manifest.origin, first, end), load)
        await self._until(lambda: load.finished)

    def _sweeps_out(self) -> bool:
        """Whether keys that the snapshot lacks leave the map: not what another node evicted."""
        return self.plan.sweep_out and self.identity.missing_means_deleted

    def _keys_now(self) -> U8:
        parts = [self.identity.keys(keys) for keys, _ in scan_whole(self.map.scan)]
        return np.concatenate(parts) if parts else np.zeros((0, self.map.info.key_size), np.uint8)

    async def _until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._step.clear()
            if condition():
                return
            await self._step.wait()


def _wake(loop: asyncio.AbstractEventLoop, event: asyncio.Event) -> None:
    with contextlib.suppress(RuntimeError):  # the loop has ended, and the waiter with it
        loop.call_soon_threadsafe(event.set)
