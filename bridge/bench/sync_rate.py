"""Changes per second from map to map: generator, bridge, nats-server, bridge, map.

Everything runs on this machine, on the same processors, the generator included. A run ends when the
last replica holds everything; its duration is that of the whole, so a backlog at the end counts.
"""

from __future__ import annotations

import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bridge.bench.churn import LOSSES, MAP, RING, loaded_churn
from bridge.bench.generator import Generator
from bridge.kernel.maps import KernelMap, create_map
from bridge.kernel.objects import default_cache
from bridge.model import Role
from bridge.rig.broker import ServerThread, servers
from bridge.rig.claim import Claim, reap_leftovers
from bridge.rig.compare import compare
from bridge.rig.nodes import MapEntry, NodeProcess, cpu_seconds

SETTLE_SECONDS_MAX = 60.0
SETTLE_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Setup:
    """What the changes pass. ``copies``: servers, each of which stores the log (R1, R3)."""

    replicas: int = 1
    storage: str = "file"
    copies: int = 1


@dataclass(frozen=True, slots=True)
class Usage:
    """Processor time per change, us, by process."""

    publisher: float
    server: float  # all servers together
    replicas: float  # all of them together
    generator: float  # the program in the kernel, and what runs it


@dataclass(frozen=True, slots=True)
class Rate:
    """One measurement. ``rate``: changes per second asked for; ``None``: as fast as it goes."""

    rate: float | None
    changes: int
    seconds: float
    changes_per_second: float
    missing: int  # entries that differ between the maps at the end, of all replicas
    dropped: int  # changes that the ring had no room for
    p50_ms: float | None  # from the write on one node until the batch is in the other's map
    p99_ms: float | None  # of several replicas the slowest
    cpu_us_per_change: float  # of all bridges and servers, without the generator
    cpu_us: Usage
    changes_per_message: float


@dataclass(slots=True)
class SyncRate:
    """Runs the measurements one after the other, each with bridges of its own."""

    seconds: float
    report: Callable[[str], None]
    rates: tuple[float | None, ...] = (None,)
    setup: Setup = field(default_factory=Setup)
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
        names = [f"b{number}" for number in range(1, self.setup.replicas + 1)]
        twins = [stack.enter_context(twin(source, claim.pin_directory / name)) for name in names]
        running = stack.enter_context(servers(directory, self.setup.copies))

        def start(name: str, entry: MapEntry) -> NodeProcess:
            url = ",".join(server.url for server in running)
            setup = self.setup
            node = NodeProcess(
                name,
                directory,
                broker_url=url,
                maps=[entry],
                replicas=setup.copies,
                storage=setup.storage,
            )
            return stack.enter_context(node)

        emit = (loaded.map_pin(RING), loaded.map_pin(LOSSES))
        publisher = start("a", MapEntry(MAP, loaded.map_pin(MAP), Role.PUBLISH, emit))
        replicas = [
            start(name, MapEntry(MAP, claim.pin_directory / name / MAP, Role.APPLY))
            for name in names
        ]
        for node in (publisher, *replicas):
            node.await_running()
        before = _used(publisher, running, replicas)
        began = time.monotonic()
        own = _own_seconds()
        generated = Generator(churn).run(self.seconds, rate)
        own = _own_seconds() - own
        self._settle(replicas, generated.changes)
        after = _used(publisher, running, replicas)
        changes = max(generated.changes, 1)
        sent, served, applied, made = (
            round(seconds / changes * 1e6, 3)
            for seconds in (*(b - a for a, b in zip(before, after, strict=True)), own)
        )
        written = max(node.applied("written_at") for node in replicas)
        seconds = max(written / 1e9 - began, generated.seconds)
        lost = int.from_bytes(loaded.map(LOSSES).lookup(bytes(4)) or b"", "little")
        differences = [compare(source, one) for one in twins]
        return Rate(
            rate=rate,
            changes=generated.changes,
            seconds=round(seconds, 3),
            changes_per_second=round(generated.changes / seconds),
            missing=sum(found.missing + found.wrong + found.extra for found in differences),
            dropped=lost,
            p50_ms=_milliseconds(max(node.applied("p50_seconds") for node in replicas)),
            p99_ms=_milliseconds(max(node.applied("p99_seconds") for node in replicas)),
            cpu_us_per_change=round(sent + served + applied, 3),
            cpu_us=Usage(sent, served, applied, made),
            changes_per_message=round(changes / max(replicas[0].applied("messages"), 1), 1),
        )

    def _settle(self, nodes: Sequence[NodeProcess], changes: int) -> None:
        """Wait until the replicas have applied as many changes as were made, or get no more."""
        deadline = time.monotonic() + SETTLE_SECONDS_MAX
        while (applied := min(node.applied("changes") for node in nodes)) < changes:
            if time.monotonic() > deadline:
                self.report(f"only {applied:,.0f} of {changes:,} changes arrived")
                return
            time.sleep(SETTLE_POLL_SECONDS)


def _used(
    publisher: NodeProcess, running: Sequence[ServerThread], replicas: Sequence[NodeProcess]
) -> tuple[float, float, float]:
    """Processor seconds so far: of the publisher, of all servers, of all replicas."""
    return (
        publisher.cpu_seconds(),
        sum(cpu_seconds(server.pid) for server in running if server.pid is not None),
        sum(node.cpu_seconds() for node in replicas),
    )


def _own_seconds() -> float:
    """Processor time of this process; the program's runs are system calls of it."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def twin(source: KernelMap, directory: Path) -> KernelMap:
    """An empty map of the same shape, pinned in ``directory``."""
    info = source.info
    twin = create_map(info.type, info.key_size, info.value_size, info.max_entries, name=info.name)
    directory.mkdir(parents=True)
    twin.pin(directory / MAP)
    return twin
