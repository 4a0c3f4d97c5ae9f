"""Shared by the tests of the capture programs: a watched map, and memory that is not there yet."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from bridge.capture.probes import ProbeCapture
from bridge.capture.source import Mode
from bridge.capture.transport import PERF_PAGES, RecordSource, Transport
from bridge.errors import UnavailableError
from bridge.kernel.maps import KernelMap, MapType, create_map
from bridge.model import U8, U64, DeltaBatch, Op

WAIT_SECONDS = 20.0
RING_BYTES = 8 << 20
SLOTS = 9  # of the maps that one object can watch
PRIME = 8191  # more entries than one record holds
T = TypeVar("T")
Change = tuple[Op, bytes, bytes]


@contextmanager
def started(
    cache: Path, *, transport: Transport = Transport.AUTO, perf_pages: int = PERF_PAGES
) -> Iterator[ProbeCapture]:
    """The system call's part alone; a skip where the programs cannot be compiled."""
    try:
        probes = ProbeCapture.start(
            Mode.SYSCALL, slots=SLOTS, cache=cache, transport=transport, perf_pages=perf_pages
        )
    except UnavailableError as error:  # no BCC or no headers on this machine
        pytest.skip(f"capture programs cannot be built: {error}")
    try:
        yield probes
    finally:
        probes.close()


def by_calls(capture: ProbeCapture) -> bool:
    """Whether updates and deletes by bpf(2) are seen at the call, or in the map's functions."""
    return capture.mode is not Mode.FENTRY


class Watched:
    """A map, what was reported of it so far, and comparisons of the two."""

    def __init__(self, target: KernelMap, source: RecordSource) -> None:
        self.map = target
        self.source = source
        self.batches: list[DeltaBatch] = []

    def drain(self) -> list[DeltaBatch]:
        """What is new. Reports lie in the ring before a write returns, so nothing is awaited."""
        fresh: list[DeltaBatch] = []
        while batches := self.source.drain():
            fresh += batches
        self.batches += fresh
        return fresh

    def changes(self) -> list[Change]:
        """What is new, change by change."""
        return [
            (Op(op), key.tobytes(), value.tobytes())
            for batch in self.drain()
            for op, key, value in zip(batch.ops, batch.keys, batch.values, strict=True)
        ]

    def count(self) -> int:
        """How many changes were reported since the watch began."""
        self.drain()
        return sum(len(batch) for batch in self.batches)

    def fold(self) -> dict[bytes, bytes]:
        """The map as its reports have it."""
        self.drain()
        state: dict[bytes, bytes] = {}
        for batch in self.batches:
            for op, key, value in zip(batch.ops, batch.keys, batch.values, strict=True):
                if op == Op.UPDATE:
                    state[key.tobytes()] = value.tobytes()
                else:
                    state.pop(key.tobytes(), None)
        return state

    def contents(self) -> dict[bytes, bytes]:
        """The map as the kernel has it."""
        return {
            key.tobytes(): value.tobytes()
            for keys, values in self.map.scan()
            for key, value in zip(keys, values, strict=True)
        }

    def assert_accounted(self, count: int) -> None:
        """What was not seen was counted as lost; more can be counted than went unseen."""
        wait_for(lambda: self.count() + self.source.losses().unpaired >= count)
        assert self.count() <= count
        assert self.source.losses().total == self.source.losses().unpaired
        if self.count() == count:
            assert self.fold() == self.contents()

    def assert_whole(self, count: int) -> None:
        """All that was done is reported once, and its fold is the map, byte by byte."""
        assert self.fold() == self.contents()
        assert self.count() == count
        assert self.source.losses().total == 0


@contextmanager
def watched(
    capture: ProbeCapture,
    key_size: int = 4,
    value_size: int = 8,
    entries: int = 16_384,
    *,
    ring_bytes: int = RING_BYTES,
) -> Iterator[Watched]:
    """A new hash map that is watched."""
    name = f"cap_{uuid.uuid4().hex}"[:15]
    with create_map(MapType.HASH, key_size, value_size, entries, name=name) as target:
        source = capture.watch(target, ring_bytes)
        try:
            yield Watched(target, source)
        finally:
            source.close()


def number(value: int, width: int = 4) -> bytes:
    return value.to_bytes(width, "little")


def rows(start: int, count: int, width: int, factor: int = 1) -> U8:
    """``u8[count, width]``: numbers in little endian, repeated over the width."""
    numbers: U64 = np.arange(start, start + count, dtype=np.uint64) * np.uint64(factor)
    eight = numbers.view(np.uint8).reshape(-1, 8)
    return np.ascontiguousarray(np.tile(eight, (1, -(-width // 8)))[:, :width])


def in_thread(work: Callable[[], T]) -> tuple[T, int]:
    """Do it in a thread of its own. Answers the result and the thread's id in the kernel."""
    results: list[T] = []
    thread_ids: list[int] = []

    def body() -> None:
        thread_ids.append(threading.get_native_id())
        results.append(work())

    thread = threading.Thread(target=body)
    thread.start()
    thread.join(WAIT_SECONDS)
    assert results, "the thread did not come to its end"
    return results[0], thread_ids[0]


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p,
    ctypes.c_size_t,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_long,
]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong]
_libc.syscall.restype = ctypes.c_long


@contextmanager
def absent(data: bytes, *, writable: bool = True, pages: int = 1) -> Iterator[int]:
    """The address of memory that holds ``data`` and is in no page table yet.

    The memory ends at the end of its last page with ``data``; what follows is not mapped.
    """
    size = pages * mmap.PAGESIZE
    with tempfile.TemporaryFile() as file:
        file.write(bytes(size - len(data)) + data)
        file.flush()
        protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
        # One page more than the file has: to touch it is an error, as on a hole.
        base = _libc.mmap(
            None, size + mmap.PAGESIZE, protection, mmap.MAP_PRIVATE, file.fileno(), 0
        )
        assert base not in (None, ctypes.c_void_p(-1).value)
        try:
            assert not any(is_present(base + page * mmap.PAGESIZE) for page in range(pages))
            yield base + size - len(data)
        finally:
            _libc.munmap(base, size + mmap.PAGESIZE)


def is_present(address: int) -> bool:
    """Whether a page is in this process's page table (``Documentation/admin-guide/mm/pagemap``)."""
    with Path("/proc/self/pagemap").open("rb", buffering=0) as pagemap:
        entry = os.pread(pagemap.fileno(), 8, address // mmap.PAGESIZE * 8)
    return bool(struct.unpack("=Q", entry)[0] >> 63)


def bpf(command: int, attr: int, size: int) -> int:
    """bpf(2) with attributes at an address. Answers the result or minus the errno."""
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    result: int = _libc.syscall(number, command, attr, size)
    return result if result >= 0 else -ctypes.get_errno()
