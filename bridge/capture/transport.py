"""What carries records from the capture programs to the bridge: ring buffers or perf buffers.

A ring buffer (Linux 5.8) is one for all CPUs and keeps the order in which records were begun. A
perf buffer is one for each CPU; ``bridge.capture.merging`` puts their records in order. Either way
each watched map has its own, in a map of maps by the number of its slot: so all single records in
a buffer have one size, and a busy map cannot fill the buffer of another one.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import mmap
import os
import select
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from bridge.capture.perf_buffer import PerfReader
from bridge.capture.perf_source import PerfSource
from bridge.capture.record import Layout, ring_bytes as fitting_ring_bytes
from bridge.capture.ring_source import RingSource
from bridge.capture.source import Losses
from bridge.kernel.errors import KernelError
from bridge.kernel.features import Answer, Probes
from bridge.kernel.maps import KernelMap, MapType, create_map
from bridge.kernel.perf import online_cpus, open_output_event

RING_BYTES_MIN = 65_536  # twice the largest record
PERF_PAGES_MIN = RING_BYTES_MIN // mmap.PAGESIZE
PERF_PAGES = 512  # of one CPU and map: 2 MiB
WAKEUP_BYTES_MAX = 65_536  # waiting on one CPU before its buffer wakes the reader

RecordSource = RingSource | PerfSource


class Transport(enum.StrEnum):
    """``AUTO`` takes the ring buffer where the kernel has it."""

    AUTO = "auto"
    RING = "ring"
    PERF = "perf"


@dataclass(frozen=True, slots=True)
class Route:
    """Where the records of a watched map come from, and who is asked about them.

    ``slots`` is the programs' map of buffers, ``number`` the key of the map's own. ``ring_bytes``
    is the least size of a ring buffer, ``perf_pages`` that of one CPU's perf buffer.
    """

    slots: KernelMap
    number: bytes
    target: KernelMap
    layout: Layout
    ring_bytes: int
    perf_pages: int
    losses: Callable[[], Losses]
    on_close: Callable[[], None]


class Carrier(Protocol):
    """One of the transports."""

    @property
    def transport(self) -> Transport: ...

    def defines(self) -> dict[str, int]:
        """The ``-D`` constants of ``bpf/capture.bpf.c``."""

    def open(self, route: Route) -> RecordSource:
        """Make a buffer, put it into its slot, and read it."""


@dataclass(frozen=True, slots=True)
class RingCarrier:
    transport = Transport.RING

    def defines(self) -> dict[str, int]:
        return {}

    def open(self, route: Route) -> RingSource:
        size = fitting_ring_bytes(max(route.ring_bytes, RING_BYTES_MIN))
        with create_map(MapType.RINGBUF, 0, 0, size, name="mapbridge_ring") as ring:
            route.slots.update(route.number, ring.fileno().to_bytes(4, "little"))
            return RingSource(
                ring.fileno(),
                size,
                route.layout,
                lookup=route.target.lookup,
                losses=route.losses,
                on_close=route.on_close,
            )


@dataclass(frozen=True, slots=True)
class PerfCarrier:
    """``cpus``: how many there may be."""

    cpus: int
    transport = Transport.PERF

    def defines(self) -> dict[str, int]:
        return {"MB_WITH_PERF": 1}

    def open(self, route: Route) -> PerfSource:
        buffers = PerfBuffers(self.cpus, max(route.perf_pages, PERF_PAGES_MIN) * mmap.PAGESIZE)

        def close() -> None:
            try:
                route.on_close()  # first: what is sent from now on must not find no buffer
            finally:
                buffers.close()

        try:
            route.slots.update(route.number, buffers.array.fileno().to_bytes(4, "little"))
        except BaseException:
            buffers.close()
            raise
        return PerfSource(
            buffers.readers,
            buffers.fileno(),
            route.layout,
            lookup=route.target.lookup,
            losses=route.losses,
            on_close=close,
        )


class PerfBuffers:
    """A perf buffer of each CPU that is online, and the array by which programs send to them.

    The kernel takes the events out of the array when the descriptor is closed by which they were
    put in (``perf_event_fd_array_release``), so the array is kept open. What is sent on a CPU that
    comes online later finds no buffer: its program counts it as lost. ``size`` is in bytes.

    A wake-up costs the writer an interrupt (seen: ten times the price of a change), and unlike a
    ring a perf buffer cannot tell whether its reader sleeps. So it wakes when a quarter of it, or
    ``WAKEUP_BYTES_MAX``, has come together; for less the reader looks by itself, at its interval.
    """

    def __init__(self, cpus: int, size: int, *, array: KernelMap | None = None) -> None:
        self.readers: list[PerfReader] = []
        with contextlib.ExitStack() as undo:
            self.array = array or create_map(
                MapType.PERF_EVENT_ARRAY, 4, 4, cpus, name="mapbridge_perf"
            )
            undo.callback(self.array.close)
            self._epoll = select.epoll()
            undo.callback(self._epoll.close)
            for cpu in online_cpus():
                self._open(cpu, size, undo)
            self._undo = undo.pop_all()

    def fileno(self) -> int:
        """Readable when a good deal waits in one of the buffers."""
        return self._epoll.fileno()

    def close(self) -> None:
        self._undo.close()

    def _open(self, cpu: int, size: int, undo: contextlib.ExitStack) -> None:
        try:
            fd = open_output_event(cpu, wakeup_bytes=min(size // 4, WAKEUP_BYTES_MAX))
        except KernelError as error:
            if error.errno == errno.ENODEV:  # has gone offline
                return
            raise
        try:
            reader = PerfReader(fd, size)
            undo.callback(reader.close)
            self.readers.append(reader)
            self.array.update(cpu.to_bytes(4, "little"), fd.to_bytes(4, "little"))
            self._epoll.register(fd, select.EPOLLIN)
        finally:
            os.close(fd)  # the reader has one of its own, so one a CPU and map is enough


def choose_carrier(transport: Transport, cpus: int) -> Carrier:
    """The transport that was asked for; ``AUTO``: rings, unless the kernel surely has none."""
    if transport is Transport.AUTO:
        missing = Probes().ring_buffer().answer is Answer.NO
        transport = Transport.PERF if missing else Transport.RING
    return PerfCarrier(cpus) if transport is Transport.PERF else RingCarrier()
