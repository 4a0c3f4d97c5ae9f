"""A program that sends to perf buffers at full speed: nothing missing, nothing twice, in order."""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from bridge.bench.churn import LOSSES, MAP, RING, Writer
from bridge.capture.drain import DrainThread
from bridge.capture.perf_source import PerfSource
from bridge.capture.source import Losses
from bridge.capture.tables import layout_of
from bridge.capture.transport import PerfBuffers
from bridge.kernel.features import Capability
from bridge.kernel.maps import open_pin
from bridge.kernel.perf import online_cpus
from bridge.model import DeltaBatch, Op
from tests.capture_kit import wait_for
from tests.integration.churn_twin import TwinChurn, fold, foretold, keeper, loaded_churn, rows
from tests.integration.kernel_support import needs, no_descriptor_leaks

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_PERFMON, Capability.CAP_NET_ADMIN)
RUNS, OPERATIONS = 31, 29  # of one call


@pytest.fixture
def churn(tmp_path: Path) -> Iterator[TwinChurn]:
    with no_descriptor_leaks(), loaded_churn(tmp_path, "EMIT_PERF") as churn:
        yield churn


@contextmanager
def opened(churn: TwinChurn, pages: int) -> Iterator[PerfSource]:
    target, lost = churn.loaded.map(MAP), churn.loaded.map(LOSSES)
    array = open_pin(churn.loaded.map_pin(RING))
    buffers = PerfBuffers(len(online_cpus()), pages * mmap.PAGESIZE, array=array)
    source = PerfSource(
        buffers.readers,
        buffers.fileno(),
        layout_of(target.info),
        lookup=target.lookup,
        losses=lambda: Losses(ring_full=int.from_bytes(lost.lookup(bytes(4)) or b"", "little")),
        bytes_max=1 << 17,
        on_close=buffers.close,
    )
    yield source
    source.close()


def content(churn: TwinChurn) -> dict[bytes, bytes]:
    return {
        key.tobytes(): value.tobytes()
        for keys, values in churn.loaded.map(MAP).scan()
        for key, value in zip(keys, values, strict=True)
    }


def test_writers_on_all_processors_with_buffers_that_wrap(churn: TwinChurn) -> None:
    pages, calls = 64, 101
    writers = [Writer((1 + i) << 32, 997, OPERATIONS, 200) for i in range(3)]
    for number, writer in enumerate(writers):
        churn.set_writer(number, writer)
    batches: list[DeltaBatch] = []
    with opened(churn, pages) as source:
        thread = DrainThread()
        thread.add(source, keeper(batches))
        thread.start()

        def work(number: int) -> None:
            for _ in range(calls):
                wait_for(lambda: source.waiting_bytes() < pages * mmap.PAGESIZE // 4)
                churn.run(number, RUNS)

        threads = [threading.Thread(target=work, args=(i,)) for i in range(len(writers))]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert thread.stop()
        assert source.losses() == Losses()
        assert source.held_rows() == source.waiting_bytes() == 0
        said = source.ring_statistics()
    expected, changes = {}, 0
    for number, writer in enumerate(writers):
        counted, entries = foretold(writer, calls * RUNS * OPERATIONS)
        assert churn.writer(number) == counted
        expected.update(entries)
        changes += counted.changes
    assert rows(batches) == said.records == changes
    assert said.bytes > 10 * pages * mmap.PAGESIZE * len(online_cpus())
    assert churn.entries() == expected
    assert fold(batches) == content(churn)
    whole = DeltaBatch.concatenate(batches)
    owners = whole.keys.view(np.uint64)[:, 0] >> np.uint64(32)
    for number in range(len(writers)):
        mine = whole.take((owners == number + 1) & (whole.ops == Op.UPDATE))
        sequences = mine.values.view(np.uint64)[:, 2].astype(np.int64)
        assert (np.diff(sequences) > 0).all(), "a writer's order, whatever processor it was on"


def test_a_reader_that_falls_behind_loses_what_is_counted(churn: TwinChurn) -> None:
    churn.set_writer(0, Writer(0, 4_999, 32, 100))
    batches: list[DeltaBatch] = []
    with opened(churn, 1) as source:
        thread = DrainThread()
        thread.add(source, keeper(batches))
        thread.start()
        churn.run(0, 10_007)
        assert thread.stop()
        losses = source.losses()
        assert losses.total == losses.ring_full > 0
        assert rows(batches) + losses.ring_full == churn.writer(0).changes
        assert source.ring_statistics().lost <= losses.ring_full
        assert source.ring_statistics().corrupt == 0
