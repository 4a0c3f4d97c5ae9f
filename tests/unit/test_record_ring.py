"""The ring reader over memory laid out like a ring, in states that a kernel shows only for moments.

A memory file takes the place of the map: consumer's page, producer's page, data, data again.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Iterator

import numpy as np
import pytest

from bridge.capture.record import Flag, Layout
from bridge.capture.ring import BUSY, DISCARD, RingError, RingReader
from bridge.capture.ring_source import RingSource
from bridge.capture.source import Losses
from bridge.errors import UnavailableError
from bridge.model import Op

PAGE = mmap.PAGESIZE
SIZE = PAGE


class Memory:
    """The producer's side of a ring in a memory file."""

    def __init__(self, start: int = 0) -> None:
        self.fd = os.memfd_create("ring")
        os.ftruncate(self.fd, 2 * PAGE + 2 * SIZE)
        self.position = start
        self._write(0, struct.pack("=Q", start))
        self._write(PAGE, struct.pack("=Q", start))

    def _write(self, offset: int, data: bytes) -> None:
        os.pwrite(self.fd, data, offset)

    def put(self, payload: bytes, *, bits: int = 0, length: int | None = None) -> int:
        """Appends a record; answers the position of its head."""
        position = self.position
        word = (len(payload) if length is None else length) | bits
        record = struct.pack("=II", word, 0) + payload + bytes(-len(payload) % 8)
        for i in range(0, len(record), 8):
            at = 2 * PAGE + (position + i) % SIZE
            self._write(at, record[i : i + 8])
            self._write(at + SIZE, record[i : i + 8])
        self.position += len(record)
        self._write(PAGE, struct.pack("=Q", self.position))
        return position

    def commit(self, position: int, length: int) -> None:
        for copy in (0, SIZE):
            at = 2 * PAGE + copy + position % SIZE
            self._write(at, struct.pack("=I", length))

    def consumed(self) -> int:
        return int(struct.unpack("=Q", os.pread(self.fd, 8, 0))[0])

    def move_consumer(self, position: int) -> None:
        self._write(0, struct.pack("=Q", position))


@pytest.fixture
def memory() -> Iterator[Memory]:
    memory = Memory()
    yield memory
    os.close(memory.fd)


@pytest.fixture
def reader(memory: Memory) -> Iterator[RingReader]:
    reader = RingReader(memory.fd, SIZE)
    yield reader
    reader.close()


def payloads(runs: list[np.ndarray[tuple[int, int], np.dtype[np.uint8]]]) -> list[bytes]:
    return [record.tobytes() for run in runs for record in run]


def test_runs_are_cut_where_the_length_changes(memory: Memory, reader: RingReader) -> None:
    sent = [bytes([i]) * (24 if i % 5 else 3) for i in range(97)]
    for payload in sent:
        memory.put(payload)
    runs = reader.drain()
    assert payloads(runs) == sent
    assert [run.shape[1] for run in runs[:4]] == [3, 24, 3, 24]
    assert [len(run) for run in runs[:4]] == [1, 4, 1, 4]
    assert memory.consumed() == memory.position
    assert reader.statistics().records == 97


def test_records_that_wrap_come_whole(memory: Memory, reader: RingReader) -> None:
    sent = 0
    for turn in range(23):
        wanted = [struct.pack("=Q", sent + i) * 5 for i in range(61)]
        for payload in wanted:
            memory.put(payload)
        sent += len(wanted)
        assert payloads(reader.drain()) == wanted, turn
    assert memory.position > 5 * SIZE


def test_a_record_being_written_stops_the_reader(memory: Memory, reader: RingReader) -> None:
    memory.put(b"first***")
    busy = memory.put(b"second**", bits=BUSY)
    memory.put(b"third***")
    assert payloads(reader.drain()) == [b"first***"]
    assert reader.drain() == []
    assert memory.consumed() == busy
    memory.commit(busy, 8)
    assert payloads(reader.drain()) == [b"second**", b"third***"]


def test_a_run_ends_before_a_record_being_written(memory: Memory, reader: RingReader) -> None:
    for i in range(131):
        memory.put(bytes([i]) * 8)
    memory.put(b"busy****", bits=BUSY)
    memory.put(b"behind**")
    assert len(payloads(reader.drain())) == 131


def test_discarded_records_are_left_out_and_counted(memory: Memory, reader: RingReader) -> None:
    for i in range(31):
        memory.put(bytes([i]) * 8, bits=DISCARD if i % 3 == 0 else 0)
    assert [p[0] for p in payloads(reader.drain())] == [i for i in range(31) if i % 3]
    assert reader.statistics().discarded == 11
    assert memory.consumed() == memory.position


def test_bytes_max_bounds_a_drain(memory: Memory, reader: RingReader) -> None:
    for i in range(41):
        memory.put(bytes([i]) * 8)
    assert len(payloads(reader.drain(16 * 7))) == 7
    assert len(payloads(reader.drain(1))) == 1
    assert len(payloads(reader.drain())) == 33


@pytest.mark.parametrize("length", [SIZE, DISCARD - 1, 4000])
def test_an_impossible_length_skips_and_counts(
    memory: Memory, reader: RingReader, length: int
) -> None:
    memory.put(b"good****")
    memory.put(b"bad*****", length=length)
    memory.put(b"lost****")
    assert payloads(reader.drain()) == [b"good****"]
    assert reader.statistics().corrupt == 1
    assert reader.drain() == []
    memory.put(b"again***")
    assert payloads(reader.drain()) == [b"again***"]
    assert reader.statistics().corrupt == 1


@pytest.mark.parametrize("moved", [8, 4, 1 << 40], ids=["taken", "odd", "beyond"])
def test_a_second_reader_is_noticed(memory: Memory, reader: RingReader, moved: int) -> None:
    memory.put(b"")
    memory.put(b"kept****")
    memory.move_consumer(moved)
    reader.drain()
    assert reader.statistics().disturbed == 1
    memory.put(b"next****")
    assert payloads(reader.drain())[-1] == b"next****"
    assert reader.statistics().disturbed == 1


def test_a_reader_goes_on_where_the_last_one_ended(memory: Memory) -> None:
    first = RingReader(memory.fd, SIZE)
    memory.put(b"one*****")
    assert payloads(first.drain()) == [b"one*****"]
    first.close()
    first.close()
    memory.put(b"two*****")
    second = RingReader(memory.fd, SIZE)
    assert payloads(second.drain()) == [b"two*****"]
    assert second.statistics().disturbed == 0
    second.close()


def test_skip_ends_at_a_record_being_written(memory: Memory, reader: RingReader) -> None:
    for _ in range(7):
        memory.put(b"old*****")
    busy = memory.put(b"busy****", bits=BUSY)
    memory.put(b"behind**")
    assert reader.skip() == 7
    memory.commit(busy, 8)
    assert payloads(reader.drain()) == [b"busy****", b"behind**"]


@pytest.mark.parametrize("size", [0, 100, PAGE // 2, 3 * PAGE])
def test_a_size_that_no_ring_has_is_refused(memory: Memory, size: int) -> None:
    with pytest.raises(RingError, match="power of two"):
        RingReader(memory.fd, size)


def test_what_cannot_be_mapped_is_refused_without_a_leak() -> None:
    before = os.listdir("/proc/self/fd")  # noqa: PTH208 - the listing's own descriptor cancels out
    counter = os.eventfd(0)
    with pytest.raises(RingError, match="cannot be mapped"):
        RingReader(counter, SIZE)
    os.close(counter)
    assert os.listdir("/proc/self/fd") == before  # noqa: PTH208


def _header(op: int, flags: int = 0, count: int = 1) -> bytes:
    return struct.pack("<QIIIBBH", 5_000, 1_000, 0, count, op, flags, 0)


def test_source_reads_every_form_and_counts_what_makes_no_sense(memory: Memory) -> None:
    layout = Layout(8, 8)
    closed: list[bool] = []

    def lookup(key: bytes) -> bytes | None:
        if key == b"refused*":
            raise UnavailableError("map: no")
        return b"looked**" if key == b"readable" else None

    source = RingSource(
        memory.fd,
        SIZE,
        Layout(8, 8),
        lookup=lookup,
        losses=lambda: Losses(ring_full=3, fault=100, rescan=1000),
        on_close=lambda: closed.append(True),
    )
    single = _header(Op.UPDATE) + b"single**" + b"value***"
    assert len(single) == layout.single_size
    memory.put(single)
    # as long as a single, and not one
    memory.put(_header(Op.DELETE, Flag.BATCH, 2) + b"gone-1**gone-2**")
    memory.put(single)
    memory.put(_header(Op.UPDATE, Flag.READ_KEY) + b"readable")
    memory.put(_header(Op.UPDATE, Flag.READ_KEY) + b"vanished")
    memory.put(_header(Op.UPDATE, Flag.BATCH, 3) + b"batch-1*batch-2*batch-3*" + b"v" * 24)
    memory.put(_header(0, Flag.RESCAN, 17))
    memory.put(_header(0, Flag.RESCAN, 0))
    memory.put(_header(9) + bytes(16))  # fault: no such operation
    memory.put(_header(Op.UPDATE, 64) + bytes(16))  # fault: no such flag
    memory.put(_header(Op.UPDATE) + bytes(8))  # fault: too short for a single
    memory.put(b"short")  # fault: too short for a header
    memory.put(_header(Op.UPDATE, Flag.BATCH, 99) + bytes(8))  # fault: too short for 99 keys
    memory.put(_header(Op.UPDATE, Flag.READ_KEY) + b"refused*")  # fault: the map does not answer
    memory.put(_header(Op.EVICT) + b"evicted*" + b"garbage*")
    (batch,) = source.drain()
    assert [key.tobytes() for key in batch.keys] == [
        b"single**",
        b"gone-1**",
        b"gone-2**",
        b"single**",
        b"readable",
        b"batch-1*",
        b"batch-2*",
        b"batch-3*",
        b"evicted*",
    ]
    u, d, e = Op.UPDATE, Op.DELETE, Op.EVICT
    assert batch.ops.tolist() == [u, d, d, u, u, u, u, u, e]
    values = [value.tobytes() for value in batch.values]
    none, v = bytes(8), b"v" * 8
    assert values == [b"value***", none, none, b"value***", b"looked**", v, v, v, none]
    assert batch.entered.tolist() == [4_000] * 9
    assert source.losses() == Losses(ring_full=3, fault=106, rescan=1018)
    said = source.statistics()
    assert (said.changes, said.vanished, said.malformed, said.unread) == (9, 1, 5, 1)
    assert source.drain() == []
    source.close()
    assert closed == [True]
