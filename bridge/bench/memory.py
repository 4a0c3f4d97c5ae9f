"""Memory that a bridge holds, against entries and against watched maps.

Two whole bridges and their server: one publishes the maps, which are full when it starts, the other
applies them to empty ones. When the maps are equal, each process is asked.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridge.bench.churn import LOSSES, MAP, RING, loaded_churn
from bridge.errors import BridgeError
from bridge.kernel.maps import KernelMap, MapType, create_map
from bridge.kernel.objects import default_cache
from bridge.model import U8, Role
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim, reap_leftovers
from bridge.rig.nodes import MapEntry, NodeProcess

ENTRIES = (1_000, 10_000, 100_000, 1_000_000)
MAPS = (1, 4, 16, 64)
ENTRIES_OF_MANY = 1_000  # of each map while their number varies
KEY_BYTES, VALUE_BYTES = 16, 24
ROOM = 1.25
WRITE_ENTRIES = 16_384
EMIT = "emit"
SETTLE_SECONDS_MAX = 300.0
LARGE_ENTRIES = 100_000  # a first scan of so many takes memory for a moment,
REST_SECONDS = 15.0  # which the bridge has given back then
POLL_SECONDS = 0.1


@dataclass(frozen=True, slots=True)
class Memory:
    """One measurement, in MB of 2**20 bytes. ``rss``: held at the end; ``peak``: the most."""

    entries: int  # of each map
    maps: int
    capture: str  # the publisher's mode; ``emit``: the program tells of its changes
    publisher_rss_mb: float
    publisher_peak_mb: float
    applier_rss_mb: float
    applier_peak_mb: float


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """The two series."""

    entries: list[Memory]
    maps: list[Memory]


class FillError(BridgeError):
    """The maps did not become equal."""


def measure_memory(
    report: Callable[[str], None],
    *,
    entries: Sequence[int] = ENTRIES,
    maps: Sequence[int] = MAPS,
) -> MemoryReport:
    """One map with each of ``entries``, then each of ``maps`` with few entries."""
    reap_leftovers()

    def run(count: int, number: int, emit: bool) -> Memory:
        report(f"{count:,} entries, maps: {number}{', emitted' if emit else ''}")
        with ExitStack() as stack:
            return _measure(stack, count, number, emit=emit)

    return MemoryReport(
        [run(count, 1, emit) for emit in (True, False) for count in entries],
        [run(ENTRIES_OF_MANY, number, False) for number in maps],
    )


def _measure(stack: ExitStack, entries: int, maps: int, *, emit: bool) -> Memory:
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapbridge-")))
    claim = stack.enter_context(Claim.take())
    pins = {node: claim.pin_directory / node for node in ("a", "b")}
    rings: tuple[Path, Path] | None = None
    if emit:
        claim.pin_directory.mkdir(parents=True)
        defines = ["EMIT", f"MAP_ENTRIES={_room(entries)}"]
        churn = stack.enter_context(loaded_churn(default_cache(), pins["a"], defines))
        names, sources = [MAP], [churn.loaded.map(MAP)]
        pins["a"] = churn.loaded.map_pin(MAP).parent
        rings = churn.loaded.map_pin(RING), churn.loaded.map_pin(LOSSES)
    else:
        names = [f"memory_{number}" for number in range(maps)]
        sources = list(_made(stack, pins["a"], names, entries))
    replicas = list(_made(stack, pins["b"], names, entries))
    for source in sources:
        _fill(source, entries)
    url = stack.enter_context(ServerThread(directory / "nats")).url
    a, b = (
        stack.enter_context(
            NodeProcess(
                node,
                directory,
                broker_url=url,
                maps=[MapEntry(name, pins[node] / name, role, tells) for name in names],
                capture="sweep" if rings else "auto",
            )
        )
        for node, role, tells in (("a", Role.PUBLISH, rings), ("b", Role.APPLY, None))
    )
    a.await_running()
    b.await_running()
    _await_equal(replicas, entries)
    if entries * maps >= LARGE_ENTRIES:
        time.sleep(REST_SECONDS)
    return Memory(
        entries,
        maps,
        EMIT if emit else a.capture_mode,
        *(round(_megabytes(node, what), 1) for node in (a, b) for what in ("VmRSS", "VmHWM")),
    )


def _made(
    stack: ExitStack, directory: Path, names: Sequence[str], entries: int
) -> Iterator[KernelMap]:
    directory.mkdir(parents=True)
    stack.callback(shutil.rmtree, directory, ignore_errors=True)
    for name in names:
        made = create_map(MapType.HASH, KEY_BYTES, VALUE_BYTES, _room(entries), name=name)
        stack.callback(made.close)
        made.pin(directory / name)
        yield made


def _room(entries: int) -> int:
    return int(entries * ROOM) + 16


def _fill(target: KernelMap, entries: int) -> None:
    for first in range(0, entries, WRITE_ENTRIES):
        numbers = np.arange(first, min(first + WRITE_ENTRIES, entries), dtype=np.uint64)
        outcome = target.update_batch(_columns(numbers, 2), _columns(numbers, 3))
        if outcome.errno:
            raise FillError(f"map {target.info.name}: refused (errno {outcome.errno})")


def _columns(numbers: np.ndarray[tuple[int], np.dtype[np.uint64]], words: int) -> U8:
    return np.stack([numbers + word for word in range(words)], axis=1).view(np.uint8)


def _await_equal(replicas: Sequence[KernelMap], entries: int) -> None:
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while any(replica.count() < entries for replica in replicas):
        if time.monotonic() > deadline:
            raise FillError(
                f"replicas: not full in {SETTLE_SECONDS_MAX:.0f} s",
                hint="see how busy this machine is",
            )
        time.sleep(POLL_SECONDS)


def _megabytes(node: NodeProcess, field: str) -> float:
    text = Path(f"/proc/{node.process.pid}/status").read_text()
    line = next(line for line in text.splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) / 1024
