"""Records of every form, mixed at random, through a real ring buffer."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bridge.capture.record import Flag, Layout
from bridge.capture.ring_source import RingSource
from bridge.capture.source import Losses
from bridge.kernel.features import Capability
from bridge.kernel.objects import LoadedObject, compile_object, load_object
from bridge.model import DeltaBatch, Op
from bridge.resources import bpf_directory
from tests.integration.kernel_support import BPFFS, needs, no_descriptor_leaks, unique_name

PROGRAMS = Path(__file__).parent / "programs"
RECORDS = 4999
pytestmark = needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN)

Change = tuple[int, bytes, bytes]


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedObject]:
    compiled = compile_object(
        PROGRAMS / "raw.bpf.c", include=[bpf_directory()], cache=tmp_path_factory.mktemp("cache")
    )
    with no_descriptor_leaks(), load_object(compiled, BPFFS / unique_name("raw_ring")) as loaded:
        yield loaded


@pytest.fixture
def source(raw: LoadedObject) -> Iterator[RingSource]:
    ring = raw.map("raw_ring")
    source = RingSource(
        ring.fileno(),
        ring.info.max_entries,
        Layout(8, 8),
        lookup=raw.map("raw_map").lookup,
        losses=Losses,
        skip_backlog=True,
    )
    yield source
    source.close()


def put(raw: LoadedObject, record: bytes, *, discard: bool = False) -> None:
    frame = struct.pack("=II", len(record), discard) + record
    answer = raw.program("raw_put").test_run(frame.ljust(64, b"\0"))
    assert answer.retval == 0


def lost(raw: LoadedObject) -> int:
    value = raw.map("raw_lost").lookup(bytes(4))
    assert value is not None
    return int(struct.unpack("=Q", value)[0])


def header(op: int, count: int = 1, flags: int = 0, left: int = 7_000) -> bytes:
    return struct.pack("<QIIIBBH", left, 2_000, 5, count, op, flags, 0)


def number(value: int) -> bytes:
    return struct.pack("=Q", value)


class Author:
    """Makes up records and remembers what they say."""

    def __init__(self, raw: LoadedObject, seed: int) -> None:
        self.raw = raw
        self.random = random.Random(seed)
        self.changes: list[Change] = []
        self.rescans = 0
        self.malformed = 0
        self.vanished = 0
        for key in range(64):
            raw.map("raw_map").update(number(key), number(key * 1000))

    def single(self, serial: int) -> None:
        key, value = number(self.random.randrange(97)), number(serial)
        op = self.random.choice(list(Op))
        put(self.raw, header(op) + key + value)
        self.changes.append((op, key, value if op is Op.UPDATE else bytes(8)))

    def batch(self, serial: int) -> None:
        count = self.random.randrange(1, 61)
        op = self.random.choice([Op.UPDATE, Op.DELETE])
        keys = [number(self.random.randrange(97)) for _ in range(count)]
        values = [number(serial + i) for i in range(count)]
        body = b"".join(keys) + (b"".join(values) if op is Op.UPDATE else b"")
        put(self.raw, header(op, count, Flag.BATCH) + body)
        none = bytes(8)
        self.changes += [
            (op, k, v if op is Op.UPDATE else none) for k, v in zip(keys, values, strict=True)
        ]

    def read_key(self, _: int) -> None:
        key = self.random.randrange(97)
        put(self.raw, header(Op.UPDATE, flags=Flag.READ_KEY) + number(key))
        if key < 64:
            self.changes.append((Op.UPDATE, number(key), number(key * 1000)))
        else:
            self.vanished += 1

    def rescan(self, _: int) -> None:
        count = self.random.randrange(5)
        put(self.raw, header(0, count, Flag.RESCAN))
        self.rescans += max(count, 1)

    def nonsense(self, serial: int) -> None:
        put(self.raw, self.random.randbytes(1 + serial % 21))
        self.malformed += 1

    def discarded(self, _: int) -> None:
        put(self.raw, b"-", discard=True)

    def write(self, serial: int) -> None:
        kinds: list[Callable[[int], None]] = [
            self.single,
            self.batch,
            self.read_key,
            self.rescan,
            self.nonsense,
            self.discarded,
        ]
        self.random.choices(kinds, weights=[70, 8, 8, 4, 4, 6])[0](serial)


def changes_of(batches: list[DeltaBatch]) -> list[Change]:
    return [
        (op, key.tobytes(), value.tobytes())
        for batch in batches
        for op, key, value in zip(batch.ops.tolist(), batch.keys, batch.values, strict=True)
    ]


@pytest.mark.parametrize("seed", [3, 5])
def test_all_forms_mixed_come_in_order_and_are_counted(
    raw: LoadedObject, source: RingSource, seed: int
) -> None:
    author = Author(raw, seed)
    before = lost(raw)
    batches: list[DeltaBatch] = []
    for serial in range(RECORDS):
        author.write(serial)
        if author.random.random() < 0.02 or source.waiting_bytes() > 40_000:
            batches += source.drain()
    batches += source.drain()
    assert source.drain() == []
    assert lost(raw) == before, "the ring was full: the test drains too seldom"
    assert changes_of(batches) == author.changes
    said = source.statistics()
    assert said.changes == len(author.changes)
    assert said.vanished == author.vanished > 0
    assert source.losses() == Losses(fault=author.malformed, rescan=author.rescans)
    assert author.malformed > 0 < author.rescans
    assert source.ring_statistics().discarded > 0
    assert all((b.entered == 5_000).all() and (b.writers == 5).all() for b in batches)


def test_a_full_ring_keeps_what_it_has_and_counts_the_rest(
    raw: LoadedObject, source: RingSource
) -> None:
    before, sent = lost(raw), 1_511
    for serial in range(sent):
        put(raw, header(Op.UPDATE) + number(serial) + number(serial))
    batches = source.drain()
    refused = lost(raw) - before
    received = sum(len(batch) for batch in batches)
    assert received + refused == sent
    assert received == 65_536 // 48
    assert [key for _, key, _ in changes_of(batches)] == [number(i) for i in range(received)]
