"""The perf buffer reader over memory laid out like one, in states a kernel shows only for moments.

A memory file takes the place of the event: a page of positions, and the data once.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from bridge.capture.perf_buffer import (
    HEAD_OFFSET,
    LOST,
    SAMPLE,
    PerfBufferError,
    PerfReader,
    PerfStatistics,
)
from bridge.kernel.perf import cpu_list
from bridge.model import U8

PAGE = mmap.PAGESIZE
SIZE = PAGE
EVERYTHING = 1 << 30


class Memory:
    """The kernel's side of a perf buffer in a memory file."""

    def __init__(self) -> None:
        self.fd = os.memfd_create("perf")
        os.ftruncate(self.fd, PAGE + SIZE)
        self.head = 0

    def sample(self, payload: bytes, *, misc: int = 1) -> None:
        """As ``perf_output_sample`` writes it: length, payload, padding."""
        padding = -(4 + len(payload)) % 8
        body = struct.pack("=I", len(payload) + padding) + payload + bytes([0xEE]) * padding
        self.record(SAMPLE, body, misc=misc)

    def lost(self, count: int) -> None:
        self.record(LOST, struct.pack("=QQ", 77, count))

    def record(self, kind: int, body: bytes, *, misc: int = 0, size: int | None = None) -> None:
        size = 8 + len(body) if size is None else size
        record = struct.pack("=IHH", kind, misc, size) + body
        for i in range(0, len(record), 8):
            os.pwrite(self.fd, record[i : i + 8], PAGE + (self.head + i) % SIZE)
        self.move_head(self.head + len(record))

    def move_head(self, head: int) -> None:
        self.head = head
        os.pwrite(self.fd, struct.pack("=Q", head), HEAD_OFFSET)

    def tail(self) -> int:
        return int(struct.unpack("=Q", os.pread(self.fd, 8, HEAD_OFFSET + 8))[0])


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    os.close(memory.fd)


@pytest.fixture
def reader(memory: Memory) -> Iterator[PerfReader]:
    reader = PerfReader(memory.fd, SIZE)
    yield reader
    reader.close()


def payloads(runs: list[U8]) -> list[bytes]:
    return [record.tobytes() for run in runs for record in run]


def test_runs_are_cut_where_the_length_changes(memory: Memory, reader: PerfReader) -> None:
    sent = [bytes([i]) * (24 if i % 5 else 32) for i in range(83)]
    for payload in sent:
        memory.sample(payload)
    runs = reader.drain(EVERYTHING)
    assert payloads(runs) == sent
    assert [run.shape[1] for run in runs[:4]] == [32, 24, 32, 24]
    assert [len(run) for run in runs[:4]] == [1, 4, 1, 4]
    assert memory.tail() == memory.head
    assert reader.statistics() == PerfStatistics(83, memory.head)
    assert not reader.left_some
    assert reader.drain(EVERYTHING) == []


def test_records_that_wrap_come_whole(memory: Memory, reader: PerfReader) -> None:
    """40 bytes do not divide the page: heads and payloads are cut at every place they can be."""
    cut_heads = sent = 0
    for turn in range(211):
        wanted = [struct.pack("=Q", sent + i) * 3 for i in range(97)]
        for payload in wanted:
            cut_heads += (memory.head + 8) % SIZE == 0
            memory.sample(payload)
        sent += len(wanted)
        assert payloads(reader.drain(EVERYTHING)) == wanted, turn
    assert memory.head > 100 * SIZE
    assert cut_heads > 0
    assert reader.statistics().corrupt == 0


def test_a_full_buffer_is_read_to_its_last_byte(memory: Memory, reader: PerfReader) -> None:
    memory.sample(b"a" * 24)
    reader.drain(EVERYTHING)
    for _ in range((SIZE - 40) // 40):
        memory.sample(b"b" * 24)
    memory.record(SAMPLE, bytes(SIZE - 40 - (memory.head - 40) - 8 + 32))
    assert memory.head - memory.tail() == SIZE - 8
    runs = reader.drain(EVERYTHING)
    assert sum(len(run) for run in runs) == (SIZE - 40) // 40 + 1
    assert reader.statistics().corrupt == 0


def test_what_programs_sent_is_aligned(memory: Memory, reader: PerfReader) -> None:
    for _ in range(7):
        memory.sample(b"c" * 24)
    (run,) = reader.drain(EVERYTHING)
    assert run.ctypes.data % 8 == 0


def test_lost_records_are_counted_and_stand_between(memory: Memory, reader: PerfReader) -> None:
    memory.sample(b"d" * 24)
    memory.lost(1009)
    memory.sample(b"e" * 24)
    memory.record(5, bytes(24))  # PERF_RECORD_THROTTLE: of no concern
    memory.lost(2)
    assert payloads(reader.drain(EVERYTHING)) == [b"d" * 24, b"e" * 24]
    assert reader.statistics() == PerfStatistics(2, 80, 1011)
    assert memory.tail() == memory.head


def test_flags_of_a_sample_do_not_matter(memory: Memory, reader: PerfReader) -> None:
    for misc in (1, 1, 2, 1):
        memory.sample(b"f" * 24, misc=misc)
    assert len(payloads(reader.drain(EVERYTHING))) == 4


@pytest.mark.parametrize("length", [0, 3, 5, 8])
def test_samples_that_no_bridge_sends(memory: Memory, reader: PerfReader, length: int) -> None:
    memory.sample(b"g" * length)
    memory.sample(b"h" * 24)
    assert payloads(reader.drain(EVERYTHING))[-1] == b"h" * 24
    assert reader.statistics().corrupt == 0


def test_a_drain_is_bounded_by_whole_records(memory: Memory) -> None:
    """At least what the largest record takes is read, so a buffer larger than that is needed."""
    size = 1 << 17
    os.ftruncate(memory.fd, PAGE + size)
    reader = PerfReader(memory.fd, size)
    sent = [struct.pack("=Q", i) * 3 for i in range(3001)]
    for payload in sent:
        body = struct.pack("=I", 28) + payload + bytes(4)
        os.pwrite(memory.fd, struct.pack("=IHH", SAMPLE, 1, 40) + body, PAGE + memory.head)
        memory.head += 40
    memory.move_head(memory.head)
    first = payloads(reader.drain(1))
    assert len(first) == (1 << 16) // 40
    assert reader.left_some
    assert memory.tail() == len(first) * 40
    assert reader.waiting_bytes() == memory.head - memory.tail()
    assert first + payloads(reader.drain(1)) == sent
    reader.close()


@pytest.mark.parametrize("size", [0, 4, 12, 4096 + 8, 65_528])
def test_an_impossible_size_skips_and_counts(memory: Memory, reader: PerfReader, size: int) -> None:
    memory.sample(b"good" * 6)
    memory.record(SAMPLE, bytes(32), size=size)
    memory.sample(b"lost" * 6)
    assert payloads(reader.drain(EVERYTHING)) == [b"good" * 6]
    assert reader.statistics().corrupt == 1
    assert reader.drain(EVERYTHING) == []
    memory.sample(b"again" * 5 + b"...")
    assert len(payloads(reader.drain(EVERYTHING))) == 1
    assert reader.statistics().corrupt == 1


@pytest.mark.parametrize("head", [SIZE + 8, 1 << 40], ids=["too far", "beyond"])
def test_an_impossible_head_skips_and_counts(memory: Memory, reader: PerfReader, head: int) -> None:
    memory.move_head(head)
    assert reader.drain(EVERYTHING) == []
    assert reader.statistics().corrupt == 1
    assert memory.tail() == head


@pytest.mark.parametrize("size", [0, 100, PAGE // 2, 3 * PAGE])
def test_a_size_that_no_buffer_has_is_refused(memory: Memory, size: int) -> None:
    with pytest.raises(PerfBufferError, match="power of two"):
        PerfReader(memory.fd, size)


def test_what_cannot_be_mapped_is_refused() -> None:
    counter = os.eventfd(0)
    with pytest.raises(PerfBufferError, match="cannot be mapped"):
        PerfReader(counter, SIZE)
    os.close(counter)


def test_a_closed_reader_leaves_its_runs_alone(memory: Memory) -> None:
    reader = PerfReader(memory.fd, SIZE)
    memory.sample(b"i" * 24)
    runs = reader.drain(EVERYTHING)
    reader.close()
    reader.close()
    assert np.array_equal(runs[0][0], np.frombuffer(b"i" * 24, np.uint8))


@pytest.mark.parametrize(
    ("text", "cpus"), [("0\n", (0,)), ("0-3\n", (0, 1, 2, 3)), ("0,2-3,7", (0, 2, 3, 7))]
)
def test_cpu_lists(text: str, cpus: tuple[int, ...]) -> None:
    assert cpu_list(text) == cpus
