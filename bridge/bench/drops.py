"""What a reader loses at a steady rate of changes: ring buffer against perf buffers.

A program changes a map and sends each change, in a process of its own; the daemon's own reader
takes them here, decodes them and throws them away. So it is the transport that is measured, not
what comes behind it. All of it runs on this machine's processors.
"""

from __future__ import annotations

import mmap
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from bridge.bench.churn import (
    LOSSES,
    MAP,
    OPERATIONS_MAX,
    RING,
    Churn,
    ChurnError,
    Writer,
    loaded_churn,
)
from bridge.bench.generator import DELETES_PER_1024, KEYS
from bridge.capture.drain import DrainThread
from bridge.capture.emit import EmitSource
from bridge.capture.perf_source import PerfSource
from bridge.capture.source import Losses
from bridge.capture.tables import layout_of
from bridge.capture.transport import PerfBuffers, RecordSource, Transport
from bridge.kernel.maps import open_pin
from bridge.kernel.objects import default_cache
from bridge.kernel.perf import online_cpus
from bridge.model import DeltaBatch, MapSelector
from bridge.rig.claim import Claim, reap_leftovers

RATE = 1_000_000
SIZES = tuple(8192 << shift for shift in (0, 2, 4, 6, 8, 10, 12, 13))  # 8 KiB to 64 MiB
WRITERS = (1, 2, 4, 8)
BUFFER_BYTES = 1 << 20  # while the number of writers varies
TRANSPORTS = (Transport.RING, Transport.PERF)
LATE_SECONDS = 30.0  # that the process with the writers may take beyond its time


@dataclass(frozen=True, slots=True)
class Drops:
    """One measurement. ``buffer_bytes``: of all CPUs' buffers together."""

    transport: Transport
    buffer_bytes: int
    writers: int
    changes: int  # as the program counted them
    changes_per_second: int
    delivered: int
    dropped: int  # as the program counted them
    dropped_percent: float
    unaccounted: int  # neither delivered nor counted as dropped: has to be 0
    reader_cpu_us_per_change: float


@dataclass(frozen=True, slots=True)
class DropsReport:
    """The two series; ``rate``: changes per second asked for."""

    rate: int
    seconds: float
    cpus: int
    sizes: list[Drops]
    writers: list[Drops]


def measure_drops(
    seconds: float,
    report: Callable[[str], None],
    *,
    rate: int = RATE,
    sizes: Sequence[int] = SIZES,
    writers: Sequence[int] = WRITERS,
    buffer_bytes: int = BUFFER_BYTES,
) -> DropsReport:
    """Both transports with each of ``sizes`` and one writer, then with each of ``writers``."""
    reap_leftovers()

    def run(size: int, count: int) -> Iterator[Drops]:
        for transport in TRANSPORTS:
            report(f"{transport}, {size >> 10:,} KiB, writers: {count}")
            yield _measure(transport, size, count, rate, seconds)

    by_size = [drops for size in sizes for drops in run(size, 1)]
    by_writers = [drops for count in writers for drops in run(buffer_bytes, count)]
    return DropsReport(rate, seconds, len(online_cpus()), by_size, by_writers)


def _measure(transport: Transport, size: int, writers: int, rate: int, seconds: float) -> Drops:
    rows = 0

    def count(batch: DeltaBatch) -> bool:
        nonlocal rows
        rows += len(batch)
        return True

    with ExitStack() as stack:
        claim = stack.enter_context(Claim.take())
        claim.pin_directory.mkdir(parents=True)
        define = f"RING_BYTES={size}"
        defines = ["EMIT", define] if transport is Transport.RING else ["EMIT_PERF"]
        pins = claim.pin_directory / "churn"
        churn = stack.enter_context(loaded_churn(default_cache(), pins, defines))
        for number in range(writers):
            churn.set_writer(
                number, Writer(number << 32, KEYS // writers, OPERATIONS_MAX, DELETES_PER_1024)
            )
        source, held = stack.enter_context(_opened(transport, churn, size))
        thread = DrainThread()
        thread.add(source, count)
        thread.start()
        used = time.process_time()
        _run_load(churn, writers, rate, seconds)
        thread.stop()
        used = time.process_time() - used
        changes = sum(churn.writer(number).changes for number in range(writers))
        dropped = source.losses().ring_full
    return Drops(
        transport=transport,
        buffer_bytes=held,
        writers=writers,
        changes=changes,
        changes_per_second=round(changes / seconds),
        delivered=rows,
        dropped=dropped,
        dropped_percent=round(100 * dropped / max(changes, 1), 3),
        unaccounted=changes - rows - dropped,
        reader_cpu_us_per_change=round(used / max(rows, 1) * 1e6, 3),
    )


@contextmanager
def _opened(transport: Transport, churn: Churn, size: int) -> Iterator[tuple[RecordSource, int]]:
    """The daemon's reader of what the program sends, and the bytes of the buffers."""
    target, losses = churn.loaded.map(MAP), churn.loaded.map(LOSSES)
    if transport is Transport.RING:
        pins = (MapSelector(pin=str(churn.loaded.map_pin(name))) for name in (RING, LOSSES))
        ring = EmitSource(target, *pins)
        yield ring, churn.loaded.map(RING).info.max_entries
        ring.close()
        return

    def lost() -> Losses:
        return Losses(ring_full=int.from_bytes(losses.lookup(bytes(4)) or b"", "little"))

    cpus = len(online_cpus())
    pages = max(1, size // cpus // mmap.PAGESIZE)
    pages = 1 << (pages.bit_length() - 1)  # of one CPU: the power of two that is not more
    array = open_pin(churn.loaded.map_pin(RING))
    buffers = PerfBuffers(cpus, pages * mmap.PAGESIZE, array=array)
    perf = PerfSource(
        buffers.readers,
        buffers.fileno(),
        layout_of(target.info),
        lookup=target.lookup,
        losses=lost,
        on_close=buffers.close,
    )
    yield perf, pages * mmap.PAGESIZE * len(buffers.readers)
    perf.close()


def _run_load(churn: Churn, writers: int, rate: int, seconds: float) -> None:
    program = str(churn.loaded.directory / "churn_run")
    words = [sys.executable, "-m", "bridge.bench.load", program, str(writers), str(rate)]
    done = subprocess.run(
        [*words, str(seconds)],
        timeout=seconds + LATE_SECONDS,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise ChurnError(f"load: ended with {done.returncode} (got {done.stderr.strip()[-400:]})")
