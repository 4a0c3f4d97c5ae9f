"""One order out of several CPUs' buffers: made-up memory, a made-up clock, every delay there is."""

from __future__ import annotations

import mmap
import os
import random
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import pytest

from bridge.capture.merging import HOLD_NANOSECONDS
from bridge.capture.perf_buffer import HEAD_OFFSET, SAMPLE, PerfReader
from bridge.capture.perf_source import POLL_SECONDS, POLL_SECONDS_MAX, PerfSource
from bridge.capture.record import Flag, Layout
from bridge.capture.source import Losses
from bridge.core.overlaps import Overlaps
from bridge.model import DeltaBatch, Op

PAGE = mmap.PAGESIZE
SIZE = 1 << 18
HOLD = HOLD_NANOSECONDS
START = 10**12


@dataclass(slots=True)
class Machine:
    """CPUs with a buffer each, and a clock that only moves when somebody waits."""

    fds: list[int]
    now: int = START
    heads: list[int] = field(default_factory=list)
    pauses: int = 0
    while_paused: list[Callable[[], None]] = field(default_factory=list)

    def put(self, cpu: int, key: int, left: int, duration: int = 10, value: int = 0) -> None:
        header = struct.pack("<QIIIBBH", left, duration, 0, 1, Op.UPDATE, 0, cpu)
        self.send(cpu, header + struct.pack("=QQ", key, value))

    def send(self, cpu: int, record: bytes) -> None:
        body = struct.pack("=I", len(record) + 4) + record + bytes(4)
        data = struct.pack("=IHH", SAMPLE, 1, 8 + len(body)) + body
        for i in range(0, len(data), 8):
            os.pwrite(self.fds[cpu], data[i : i + 8], PAGE + (self.heads[cpu] + i) % SIZE)
        self.heads[cpu] += len(data)
        os.pwrite(self.fds[cpu], struct.pack("=Q", self.heads[cpu]), HEAD_OFFSET)

    def pause(self, seconds: float) -> None:
        self.pauses += 1
        self.now += round(seconds * 1e9)
        for event in self.while_paused:
            event()


@contextmanager
def opened(cpus: int, bytes_max: int = 1 << 20) -> Iterator[tuple[Machine, PerfSource]]:
    fds = [os.memfd_create("perf") for _ in range(cpus)]
    for fd in fds:
        os.ftruncate(fd, PAGE + SIZE)
    machine = Machine(fds, heads=[0] * cpus)
    source = PerfSource(
        [PerfReader(fd, SIZE) for fd in fds],
        -1,
        Layout(8, 8),
        lookup=lambda _: None,
        losses=Losses,
        bytes_max=bytes_max,
        clock=lambda: machine.now,
        pause=machine.pause,
    )
    yield machine, source
    source.close()
    for fd in fds:
        os.close(fd)


def keys(batches: list[DeltaBatch]) -> list[int]:
    return [int(key) for batch in batches for key in batch.keys.view(np.uint64)[:, 0]]


def test_records_of_two_cpus_are_one_sequence() -> None:
    with opened(2) as (machine, source):
        for i in range(101):
            machine.put(i * 7 % 2, i, START - 10**6 + i)
        assert keys(source.drain()) == list(range(101))
        assert source.drain() == []
        assert machine.pauses == 0


def test_what_is_young_waits_for_older_ones_of_other_cpus() -> None:
    with opened(2) as (machine, source):
        machine.put(0, 2, START - 5)
        machine.while_paused.append(lambda: machine.put(1, 1, START - 9))
        assert keys(source.drain()) == [1, 2]
        assert machine.pauses == 1
        assert source.held_rows() == 0


def test_it_never_says_nothing_while_it_holds_something() -> None:
    with opened(2) as (machine, source):
        machine.put(0, 1, START - HOLD)
        machine.put(0, 2, START - HOLD + 1)
        assert keys(source.drain()) == [1]
        assert source.held_rows() == 1
        assert source.interval < 0.001
        assert keys(source.drain()) == [2]
        assert source.interval == POLL_SECONDS
        for _ in range(7):
            assert source.drain() == []
        assert source.interval == POLL_SECONDS_MAX
        assert machine.pauses == 1


def test_one_cpu_that_is_interrupted_between_time_and_sending() -> None:
    with opened(1) as (machine, source):
        machine.put(0, 2, START - HOLD - 5)
        machine.put(0, 1, START - HOLD - 9)
        assert keys(source.drain()) == [1, 2]


def test_changes_of_one_record_stay_together_and_in_order() -> None:
    with opened(2) as (machine, source):
        early = START - 2 * HOLD
        header = struct.pack("<QIIIBBH", early, 10, 0, 3, Op.DELETE, Flag.BATCH, 0)
        machine.send(0, header + struct.pack("=QQQ", 9, 5, 7))
        machine.put(1, 1, early - 1)
        machine.put(1, 2, early + 1)
        assert keys(source.drain()) == [1, 9, 5, 7, 2]


def test_a_backlog_on_one_cpu_holds_the_others_back() -> None:
    """What was not read yet may be older than all that the other CPUs have."""
    with opened(2, bytes_max=2048) as (machine, source):
        early = START - 10**9
        for i in range(3001):  # more than one reading takes
            machine.put(0, i, early + i)
        for i in range(3001, 3501):
            machine.put(1, i, early + i)
        batches: list[DeltaBatch] = []
        held = 0
        while taken := source.drain():
            batches += taken
            held = max(held, source.held_rows())
        assert keys(batches) == list(range(3501))
        assert len(batches) > 2
        assert 0 < held <= 2 * 500
        assert machine.pauses == 0


def test_memory_is_bounded_while_one_cpu_lags() -> None:
    with opened(2, bytes_max=2048) as (machine, source):
        early = START - 10**9
        machine.put(0, 0, early)
        # One CPU sends nothing but records that say nothing, so that its time does not move.
        rescan = struct.pack("<QIIIBBH", early, 10, 0, 0, 0, Flag.RESCAN, 0)
        for _ in range(4001):
            machine.send(0, rescan)
        for i in range(1, 2003):
            machine.put(1, i, early + i)
        batches: list[DeltaBatch] = []
        while taken := source.drain():
            batches += taken
            assert source.held_rows() < 2003
        assert sorted(keys(batches)) == list(range(2003))
        assert source.losses() == Losses(rescan=4001)


@pytest.mark.parametrize("seed", range(23))
def test_every_pair_out_of_order_is_found_in_doubt(seed: int) -> None:
    """Any delay between a record's time and its being seen, at any moment, on any CPU."""
    chance = random.Random(seed)
    cpus, count = chance.choice([1, 2, 3, 5]), 599
    slow = chance.choice([0, HOLD // 2, 4 * HOLD])  # of these, only the last is beyond the bound
    with opened(cpus, bytes_max=chance.choice([4096, 1 << 20])) as (machine, source):
        events = []  # when seen, CPU, key, left, duration
        clocks = [START] * cpus
        for number in range(count):
            cpu = chance.randrange(cpus)
            entered = clocks[cpu] + chance.randrange(1, HOLD)
            left = entered + chance.randrange(1, 2000)
            clocks[cpu] = left + chance.randrange(slow + 1)
            events.append((clocks[cpu], cpu, chance.randrange(7), left, left - entered, number))
        waiting = sorted(events, reverse=True)

        def appear() -> None:
            while waiting and waiting[-1][0] <= machine.now:
                _, cpu, key, left, duration, number = waiting.pop()
                machine.put(cpu, key, left, duration, number)

        machine.while_paused = [appear]
        batches: list[DeltaBatch] = []
        while waiting:
            machine.now = max(machine.now, waiting[-1][0])
            appear()
            if chance.random() < 0.2:
                batches += source.drain()
        while taken := source.drain():
            batches += taken
        whole = DeltaBatch.concatenate(batches)
        assert sorted(whole.values.view(np.uint64)[:, 0].tolist()) == list(range(count))
        in_order = bool((whole.left[1:] >= whole.left[:-1]).all())
        assert in_order or slow > HOLD
        assert doubts(batches) >= inversions(whole)


def inversions(whole: DeltaBatch) -> set[int]:
    """Numbers of changes that stand behind one of their key which began after they had ended."""
    found, latest = set(), dict[int, int]()
    numbers = whole.values.view(np.uint64)[:, 0].tolist()
    for key, entered, left, number in zip(
        keys([whole]), whole.entered.tolist(), whole.left.tolist(), numbers, strict=True
    ):
        if latest.get(key, 0) > left:
            found.add(number)
        latest[key] = max(latest.get(key, 0), entered)
    return found


def doubts(batches: list[DeltaBatch]) -> set[int]:
    overlaps, found = Overlaps(), set[int]()
    for batch in batches:
        marked = overlaps.add(batch.keys, batch.entered, batch.left)
        if marked is not None:
            found.update(batch.values.view(np.uint64)[marked, 0].tolist())
    return found


def test_the_slow_seeds_do_get_out_of_order() -> None:
    """Or the test above would say nothing: what is seen too late does come behind."""
    with opened(2) as (machine, source):
        machine.put(0, 1, START - 2 * HOLD, value=1)
        batches = source.drain()
        machine.put(1, 1, START - 3 * HOLD, value=2)
        batches += source.drain()
        assert inversions(DeltaBatch.concatenate(batches)) == {2}
        assert doubts(batches) == {2}
