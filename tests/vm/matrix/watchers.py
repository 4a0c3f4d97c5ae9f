"""What sees the changes of one map in the kernel matrix: the probes of a mode, or sweeps."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from bridge.bus.outbox import Outbox
from bridge.capture.probes import ProbeCapture
from bridge.capture.scan import ScannedSource, SweepSource
from bridge.core.fingerprints import Fingerprints
from bridge.core.identity import Identity
from bridge.core.replica import Replica
from bridge.kernel.maps import KernelMap
from bridge.kernel.maptypes import LRU_TYPES
from bridge.model import DeltaBatch, Origin
from bridge.node.lane import Lane

RING_BYTES = 4 << 20
OUTBOX_BYTES = 256 << 20
POLL_SECONDS = 0.005

Change = tuple[int, bytes, bytes]


class Watcher(Protocol):
    """What sees the changes of one map."""

    def take(self, wanted: int, seconds: float) -> list[Change]:
        """What is new; asked again for ``seconds`` while it is less than wanted."""

    def repair(self) -> list[Change] | None:
        """What a comparison with the fold finds; ``None`` where it says nothing."""

    def lost(self) -> int:
        """Changes that are counted as lost so far."""

    def close(self) -> None: ...


class Fold(Lane):
    """What changes are captured into, as in a node; it is compared like a node's map."""

    def __init__(self, target: KernelMap) -> None:
        info = target.info
        replica = Replica(
            Origin("vm", "matrix", "guest", 1),
            publishes=True,
            applies=False,
            fingerprints=Fingerprints(info.key_size),
        )
        outbox = Outbox(info.key_size, info.value_size, OUTBOX_BYTES)
        super().__init__(replica, outbox, Identity(evicts=info.type in LRU_TYPES))

    def add(self, batches: Sequence[DeltaBatch]) -> list[Change]:
        found: list[Change] = []
        for batch in batches:
            assert self.sink(batch), "the outbox holds all that the suite does"
            columns = zip(batch.ops.tolist(), batch.keys, batch.values, strict=True)
            found += [(op, key.tobytes(), value.tobytes()) for op, key, value in columns]
        return found


class Probed:
    """By the probes of a mode."""

    def __init__(self, capture: ProbeCapture, target: KernelMap) -> None:
        self._fold = Fold(target)
        self._ring = capture.watch(target, RING_BYTES)
        self._source = ScannedSource(self._ring, target, ready=lambda: True, comparison=self._fold)
        while not self._source.started:
            self._fold.add(self._source.drain())

    def take(self, wanted: int, seconds: float) -> list[Change]:
        found: list[Change] = []
        deadline = time.monotonic() + seconds
        while True:
            while batches := self._source.drain():
                found += self._fold.add(batches)
            if len(found) >= wanted or time.monotonic() >= deadline:
                return found
            time.sleep(POLL_SECONDS)

    def repair(self) -> list[Change] | None:
        found: list[Change] = []
        self._source.repair()
        while self._source.repairing:
            found += self._fold.add(self._source.drain())
        return found

    def lost(self) -> int:
        return self._source.losses().total

    def close(self) -> None:
        self._source.close()


class Swept:
    """By comparing the map again and again: what a step comes to in the end."""

    def __init__(self, target: KernelMap) -> None:
        self._fold = Fold(target)
        self._source = SweepSource(target, self._fold, interval_seconds=1.0, ready=lambda: True)

    def take(self, wanted: int, seconds: float) -> list[Change]:
        return self._fold.add(self._source.drain())

    def repair(self) -> list[Change] | None:
        return None

    def lost(self) -> int:
        return self._source.losses().total

    def close(self) -> None:
        self._source.close()
