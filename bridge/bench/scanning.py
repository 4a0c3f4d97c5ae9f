"""Reading a whole map again and again, next to events: what each costs against the map's size.

Three ways to know of the same changes, made at a steady rate: the plain walk (next key, look up,
compare with the copy), once over the map; a bridge that sweeps the map at an interval; a bridge
that is told of each change. Of the last two it is the whole process whose time is taken.
"""

from __future__ import annotations

import ctypes
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bridge.bench.churn import LOSSES, MAP, OPERATIONS_MAX, RING, Churn, Writer, loaded_churn
from bridge.bench.generator import DELETES_PER_1024
from bridge.bench.load import write
from bridge.errors import BridgeError
from bridge.kernel import syscall
from bridge.kernel.maps import KernelMap
from bridge.kernel.objects import default_cache
from bridge.kernel.syscall import Command
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim, reap_leftovers
from bridge.rig.nodes import MapEntry, NodeProcess

ENTRIES = (1_000, 10_000, 100_000, 1_000_000)
RATE = 1_000
INTERVAL_SECONDS = 1.0
ROOM = 1.25
REST_WINDOWS_MAX = 10  # of a second each, behind the first publication, until it is at rest
REST_SHARE = 0.8  # of the window before: no rest yet
PUBLISH_SECONDS_MAX = 300.0


@dataclass(frozen=True, slots=True)
class Scanning:
    """One size of map. Costs in processor seconds per second."""

    entries: int
    changes_per_second: int
    walk: float  # one plain walk each interval, without what would have to be sent
    sweep: float  # a bridge that reads and compares each interval
    events: float  # a bridge that is told


@dataclass(frozen=True, slots=True)
class ScanReport:
    interval_seconds: float
    seconds: float
    sizes: list[Scanning]


class ScanError(BridgeError):
    """A bridge did not publish what the map held."""


def measure_scanning(
    seconds: float,
    report: Callable[[str], None],
    *,
    entries: Sequence[int] = ENTRIES,
    rate: int = RATE,
    interval: float = INTERVAL_SECONDS,
) -> ScanReport:
    """Each of ``entries`` in turn."""
    reap_leftovers()
    sizes = []
    for count in entries:
        report(f"{count:,} entries, walk and sweep")
        with ExitStack() as stack:
            walk, sweep = _measure(stack, count, rate, seconds, interval, emit=False)
        report(f"{count:,} entries, events")
        with ExitStack() as stack:
            _, events = _measure(stack, count, rate, seconds, interval, emit=True)
        sizes.append(Scanning(count, rate, walk, sweep, events))
    return ScanReport(interval, seconds, sizes)


def _measure(
    stack: ExitStack, entries: int, rate: int, seconds: float, interval: float, *, emit: bool
) -> tuple[float, float]:
    """Processor seconds per second of the walk (only without ``emit``) and of the bridge."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapbridge-")))
    claim = stack.enter_context(Claim.take())
    claim.pin_directory.mkdir(parents=True)
    defines = [f"MAP_ENTRIES={int(entries * ROOM)}", *(["EMIT"] if emit else [])]
    churn = stack.enter_context(loaded_churn(default_cache(), claim.pin_directory / "a", defines))
    held = _fill(churn, entries)
    walk = 0.0 if emit else _walk(churn.loaded.map(MAP)) / interval
    pins = (churn.loaded.map_pin(RING), churn.loaded.map_pin(LOSSES)) if emit else None
    more = () if emit else (f'sweep = "{round(interval * 1000)}ms"',)
    entry = MapEntry(MAP, churn.loaded.map_pin(MAP), Role.PUBLISH, pins, more=more)
    url = stack.enter_context(ServerThread(directory / "nats")).url
    node = stack.enter_context(
        NodeProcess("a", directory, broker_url=url, maps=[entry], capture="sweep")
    )
    node.await_running()
    _await_published(node, held)
    _await_rest(node)
    used, began = node.cpu_seconds(), time.monotonic()
    write(churn.loaded.program("churn_run"), 0, rate, seconds)
    used = node.cpu_seconds() - used
    return round(walk, 4), round(used / (time.monotonic() - began), 4)


def _fill(churn: Churn, entries: int) -> int:
    """Let the program write until the map is about full; answers how many entries there are.

    Random keys: four updates a key leave one in fifty out.
    """
    churn.set_writer(0, Writer(1, entries, OPERATIONS_MAX))
    churn.run(0, max(1, entries * 4 // OPERATIONS_MAX))
    done = churn.writer(0)
    churn.set_writer(0, Writer(1, entries, OPERATIONS_MAX, DELETES_PER_1024, done=done.done))
    return churn.loaded.map(MAP).count()


def _await_published(node: NodeProcess, entries: int) -> None:
    deadline = time.monotonic() + PUBLISH_SECONDS_MAX
    while (published := _published(node)) < entries:
        if time.monotonic() > deadline:
            raise ScanError(
                f"node {node.name}: the first entries were not published (got {published})",
                hint="see how busy this machine is",
            )
        time.sleep(0.1)


def _await_rest(node: NodeProcess) -> None:
    """Wait until the process does not do less and less any more."""
    before = float("inf")
    for _ in range(REST_WINDOWS_MAX):
        used = node.cpu_seconds()
        time.sleep(1.0)
        used = node.cpu_seconds() - used
        if used > REST_SHARE * before - 0.02:
            return
        before = used


def _published(node: NodeProcess) -> int:
    found = node.map_status().get("published")
    return int(found.get("changes") or 0) if isinstance(found, dict) else 0


def _walk(target: KernelMap) -> float:
    """Processor seconds of one plain walk: next key, look up, compare with the copy."""
    info = target.info
    key, value = (ctypes.create_string_buffer(size) for size in (info.key_size, info.value_size))
    at_key, at_value = ctypes.addressof(key), ctypes.addressof(value)
    fd, copy = target.fileno(), dict[bytes, bytes]()
    for chunk_keys, chunk_values in target.scan():
        for row in range(len(chunk_keys)):
            copy[chunk_keys[row].tobytes()] = chunk_values[row].tobytes()
    used = time.thread_time()
    before, differ = 0, 0
    while not syscall.element(Command.MAP_GET_NEXT_KEY, fd, before, at_key):
        before = at_key
        syscall.element(Command.MAP_LOOKUP_ELEM, fd, at_key, at_value)
        differ += copy.get(key.raw) != value.raw
    if differ:
        raise ScanError(f"walk: a map at rest differs from its copy (got {differ} entries)")
    return time.thread_time() - used
