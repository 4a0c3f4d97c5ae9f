"""The tests of writes by bpf(2) once more, with perf buffers for the records."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from bridge.capture.perf_buffer import PerfStatistics
from bridge.capture.perf_source import PerfSource
from bridge.capture.probes import ProbeCapture
from bridge.capture.transport import PERF_PAGES_MIN, WAKEUP_BYTES_MAX, Transport, choose_carrier
from bridge.kernel.maps import MapType, create_map
from bridge.kernel.perf import online_cpus
from tests.capture_kit import (
    PRIME,
    SLOTS,
    WAIT_SECONDS,
    Watched,
    number,
    rows,
    started,
    wait_for,
    watched,
)
from tests.integration.kernel_support import no_descriptor_leaks
from tests.integration.test_capture_watching import *  # noqa: F403
from tests.integration.test_syscall_capture import *  # noqa: F403

PERF_PAGES = 2048  # of each CPU: the ring's size in those tests


@pytest.fixture(scope="module")
def capture(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProbeCapture]:
    """One object for all tests: compiling is what costs."""
    cache = tmp_path_factory.mktemp("cache")
    with started(cache, transport=Transport.PERF, perf_pages=PERF_PAGES) as probes:
        yield probes


def fill(capture: ProbeCapture) -> None:
    """More than the smallest buffer takes, all on one CPU: what is refused is counted."""
    with create_map(MapType.HASH, 4, 8, 16_384) as target, pinned(online_cpus()[-1]):
        source = capture.watch(target, 0, perf_pages=PERF_PAGES_MIN)
        assert isinstance(source, PerfSource)
        one = Watched(target, source)
        target.update_batch(rows(1, PRIME, 4), rows(1, PRIME, 8))
        lost = source.losses()
        assert lost.ring_full > 0
        assert lost.ring_full == lost.total
        assert one.count() + lost.ring_full == PRIME
        assert source.ring_statistics() == PerfStatistics(2, 2 * (8 + 8 + 24 + 2048 * 12), 0, 0)
        target.update(number(1), bytes(8))
        assert one.count() + lost.ring_full == PRIME + 1
        assert source.losses() == lost
        # The kernel tells it late: with the next record that finds room, and in records.
        assert source.ring_statistics().lost == 4 - 2
        source.close()


def test_full_ring_is_counted(capture: ProbeCapture) -> None:  # type: ignore[no-redef]
    fill(capture)


def test_slots_are_given_back(capture: ProbeCapture) -> None:  # type: ignore[no-redef]
    for _ in range(2 * SLOTS):
        fill(capture)
    with watched(capture) as one:
        one.map.update(number(1), bytes(8))
        one.assert_whole(1)


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """The calling thread stays on one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def test_one_order_out_of_all_processors(capture: ProbeCapture) -> None:
    """A thread that goes from CPU to CPU: its writes come in the order in which it made them."""
    cpus = online_cpus()
    if len(cpus) < 2:
        pytest.skip("one CPU only")
    with watched(capture) as one:
        for turn in range(997):
            with pinned(cpus[turn % len(cpus)]):
                one.map.update(number(turn % 3), number(turn, 8))
        seen = [int.from_bytes(value, "little") for _, _, value in one.changes()]
        assert seen == list(range(997))
        one.assert_whole(997)
        for batch in one.batches:
            assert (np.diff(batch.left.astype(np.int64)) >= 0).all()


def test_the_reader_is_woken(capture: ProbeCapture) -> None:
    """One descriptor stands for the buffers of all CPUs; a few records do not wake anybody."""
    count = WAKEUP_BYTES_MAX // (4 + 8) + 2  # what their records take, and one more
    with watched(capture) as one, select.epoll() as epoll:
        epoll.register(one.source.fileno(), select.EPOLLIN)
        assert epoll.poll(0) == []
        for cpu in online_cpus():
            with pinned(cpu):
                one.map.update(number(cpu), bytes(8))
                assert epoll.poll(0) == []
                one.map.update_batch(rows(1, count, 4), rows(1, count, 8))
            assert [fd for fd, _ in epoll.poll(WAIT_SECONDS)] == [one.source.fileno()]
            assert len(one.changes()) == 1 + count
            wait_for(lambda: epoll.poll(0) == [])


def test_nothing_is_left_behind(capture: ProbeCapture) -> None:
    with create_map(MapType.HASH, 4, 8, 64) as target, no_descriptor_leaks():
        source = capture.watch(target, 0)
        target.update(number(1), bytes(8))
        assert [len(batch) for batch in source.drain()] == [1]
        source.close()


def test_transport_in_force(capture: ProbeCapture) -> None:
    assert capture.transport is Transport.PERF
    assert choose_carrier(Transport.AUTO, 1).transport is Transport.RING  # this kernel has rings
