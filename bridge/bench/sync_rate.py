"""Changes per second from map to map: generator, bridge, nats-server, bridge, map.

Everything runs on this machine, on the same processors, the generator included. A run ends when the
replica holds everything; its duration is that of the whole, so a backlog at the end counts.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bridge.bench.churn import LOSSES, MAP, RING, loaded_churn
from bridge.bench.generator import Generator
from bridge.kernel.maps import KernelMap, create_map
from bridge.kernel.objects import default_cache
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim, reap_leftovers
from bridge.rig.compare import compare
from bridge.rig.nodes import MapEntry, NodeProcess

SETTLE_SECONDS_MAX = 60.0
SETTLE_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Rate:
    """One measurement. ``rate``: changes per second asked for; ``None``: as fast as it goes."""

    rate: float | None
    changes: int
    seconds: float
    changes_per_second: float
    missing: int  # entries that differ between the maps at the end
    dropped: int  # changes that the ring had no room for
    p50_ms: float | None  # from the write on one node until the batch is in the other's map
    p99_ms: float | None
    cpu_us_per_change: float  # of both bridges, without nats-server


@dataclass(slots=True)
class SyncRate:
    """Runs the measurements one after the other, each with bridges of its own."""

    seconds: float
    report: Callable[[str], None]
    rates: tuple[float | None, ...] = (None,)
    _results: list[Rate] = field(default_factory=list)

    def run(self) -> list[Rate]:
        """One ``Rate`` for each of ``rates``."""
        reap_leftovers()
        for rate in self.rates:
            asked = "as fast as it goes" if rate is None else f"{rate:,.0f} changes/s"
            self.report(f"{asked}, {self.seconds:g} s")
            with ExitStack() as stack:
                self._results.append(self._measure(stack, rate))
        return self._results

    def _measure(self, stack: ExitStack, rate: float | None) -> Rate:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapbridge-")))
        claim = stack.enter_context(Claim.take())
        claim.pin_directory.mkdir(parents=True)
        churn = stack.enter_context(
            loaded_churn(default_cache(), claim.pin_directory / "a", ["EMIT"])
        )
        loaded = churn.loaded
        source = loaded.map(MAP)
        replica = stack.enter_context(twin(source, claim.pin_directory / "b"))
        server = stack.enter_context(ServerThread(directory / "nats"))

        def start(name: str, role: Role, emit: tuple[Path, Path] | None) -> NodeProcess:
            pin = loaded.map_pin(MAP) if emit else claim.pin_directory / "b" / MAP
            node = NodeProcess(
                name,
                directory,
                broker_url=server.url,
                maps=[MapEntry(MAP, pin, role, emit)],
            )
            return stack.enter_context(node)

        a = start("a", Role.PUBLISH, (loaded.map_pin(RING), loaded.map_pin(LOSSES)))
        b = start("b", Role.APPLY, None)
        a.await_running()
        b.await_running()
        used = a.cpu_seconds() + b.cpu_seconds()
        began = time.monotonic()
        generated = Generator(churn).run(self.seconds, rate)
        self._settle(b, generated.changes)
        used = a.cpu_seconds() + b.cpu_seconds() - used
        seconds = max(b.applied("written_at") / 1e9 - began, generated.seconds)
        lost = int.from_bytes(loaded.map(LOSSES).lookup(bytes(4)) or b"", "little")
        found = compare(source, replica)
        return Rate(
            rate=rate,
            changes=generated.changes,
            seconds=round(seconds, 3),
            changes_per_second=round(generated.changes / seconds),
            missing=found.missing + found.wrong + found.extra,
            dropped=lost,
            p50_ms=_milliseconds(b.applied("p50_seconds")),
            p99_ms=_milliseconds(b.applied("p99_seconds")),
            cpu_us_per_change=round(used / max(generated.changes, 1) * 1e6, 3),
        )

    def _settle(self, node: NodeProcess, changes: int) -> None:
        """Wait until the replica has applied as many changes as were made, or gets no more."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while (applied := node.applied("changes")) < changes:
            if time.monotonic() > deadline:
                self.report(f"only {applied:,.0f} of {changes:,} changes arrived")
                return
            time.sleep(SETTLE_POLL_SECONDS)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def twin(source: KernelMap, directory: Path) -> KernelMap:
    """An empty map of the same shape, pinned in ``directory``."""
    info = source.info
    twin = create_map(info.type, info.key_size, info.value_size, info.max_entries, name=info.name)
    directory.mkdir(parents=True)
    twin.pin(directory / MAP)
    return twin
