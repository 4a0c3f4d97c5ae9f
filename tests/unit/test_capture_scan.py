"""The scan at the start, interleaved with what a ring brings."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pytest

from bridge.bus.outbox import Outbox
from bridge.capture.scan import REPAIR_POLL_SECONDS, ScannedSource, SweepSource
from bridge.capture.source import Losses
from bridge.core.fingerprints import Fingerprints
from bridge.core.replica import Replica
from bridge.errors import BridgeError
from bridge.model import U8, Cause, DeltaBatch, MapInfo, Op, Origin
from bridge.node.lane import Lane

INFO = MapInfo(1, "m", 1, 1, 1, 16)


def column(*numbers: int) -> U8:
    return np.array(numbers, np.uint8).reshape(-1, 1)


def change(number: int) -> DeltaBatch:
    return DeltaBatch.of_entries(Op.UPDATE, column(number), column(number), 20, began=10)


class Ring:
    """A source with given contents."""

    interval = 60.0

    def __init__(self, *batches: DeltaBatch) -> None:
        self.batches = list(batches)

    def fileno(self) -> int | None:
        return None

    def drain(self) -> list[DeltaBatch]:
        return [self.batches.pop(0)] if self.batches else []

    def losses(self) -> Losses:
        return Losses()

    def close(self) -> None:
        return None


class Entries:
    """A map whose scan breaks off in its second chunk as often as told."""

    info = INFO

    def __init__(self, *, failures: int = 0) -> None:
        self.failures = failures

    def scan(self) -> Iterator[tuple[U8, U8]]:
        yield column(1, 2), column(1, 2)
        if self.failures:
            self.failures -= 1
            raise BridgeError("scan: unsteady")
        yield column(3), column(3)


def found(source: ScannedSource | SweepSource) -> list[tuple[Cause, list[int]]]:
    return [(b.cause, sorted(b.keys[:, 0].tolist())) for b in source.drain()]


def test_a_scan_that_breaks_off_loses_nothing_of_the_ring_and_begins_anew() -> None:
    ring = Ring(change(7), change(8), change(9))
    source = ScannedSource(
        ring, Entries(failures=1), ready=lambda: True, comparison=lane(), publishes_all=True
    )
    assert found(source) == [(Cause.CHANGE, [7]), (Cause.SCAN, [1, 2])]
    assert found(source) == [(Cause.CHANGE, [8])]
    with pytest.raises(BridgeError, match="unsteady"):
        source.drain()
    assert found(source) == [(Cause.CHANGE, [9]), (Cause.SCAN, [1, 2])]
    assert found(source) == [(Cause.SCAN, [3])]
    assert source.interval < REPAIR_POLL_SECONDS, "the scan is not at its end"
    assert found(source) == []
    assert source.interval == REPAIR_POLL_SECONDS
    assert found(source) == []


def test_it_waits_until_the_stream_has_been_read() -> None:
    ready = False
    source = ScannedSource(
        Ring(change(7)), Entries(), ready=lambda: ready, comparison=lane(), publishes_all=True
    )
    assert found(source) == [(Cause.CHANGE, [7])]
    assert found(source) == []
    ready = True
    assert found(source) == [(Cause.SCAN, [1, 2])]


def repaired(source: ScannedSource, way: Lane) -> list[tuple[Op, list[int]]]:
    """What a repair publishes."""
    published = []
    source.repair()
    while source.repairing:
        for batch in source.drain():
            assert way.sink(batch)
            assert batch.cause is Cause.REPAIR
            published.append((Op(int(batch.ops[0])), sorted(batch.keys[:, 0].tolist())))
    return published


@pytest.mark.parametrize("publishes_all", [True, False])
def test_after_a_loss_the_whole_map_is_compared(publishes_all: bool) -> None:
    entries, way = Entries(), lane()
    ring = Ring()
    source = ScannedSource(
        ring, entries, ready=lambda: True, comparison=way, publishes_all=publishes_all
    )
    while not source.started:
        for batch in source.drain():
            assert way.sink(batch)
    entries.scan = lambda: iter(  # type: ignore[method-assign]
        [(column(1, 4), column(1, 4)), (column(3), column(33))]
    )
    assert sorted(repaired(source, way)) == [(Op.UPDATE, [3, 4]), (Op.DELETE, [2])]
    assert source.repairs == 1
    assert repaired(source, way) == [], "the second time there is nothing left to publish"
    assert (source.repairs, way.counters.repaired) == (2, 3)


def test_a_change_recorded_during_the_comparison_is_not_followed_by_an_older_value() -> None:
    entries, way, ring = Entries(), lane(), Ring()
    source = ScannedSource(ring, entries, ready=lambda: True, comparison=way, rejoins=True)
    assert source.drain() == []  # the first chunk is read: key 1 has value 1
    late = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    ring.batches = [DeltaBatch.of_entries(Op.UPDATE, column(1), column(9), late + 1, began=late)]
    published: list[tuple[int, int]] = []
    while not source.started:
        for batch in source.drain():
            assert way.sink(batch)
            published += zip(batch.keys[:, 0].tolist(), batch.values[:, 0].tolist(), strict=True)
    assert [value for key, value in published if key == 1] == [9]


def lane() -> Lane:
    replica = Replica(
        Origin("c", "m", "n", 1), publishes=True, applies=True, fingerprints=Fingerprints(1)
    )
    return Lane(replica, Outbox(1, 1))


def test_sweeps_publish_what_is_new_and_what_is_gone() -> None:
    entries = Entries()
    source = SweepSource(entries, lane(), interval_seconds=1.0, ready=lambda: True)
    assert found(source) == [(Cause.SCAN, [1, 2, 3])]
    assert found(source) == []
    entries.failures = 1
    with pytest.raises(BridgeError, match="unsteady"):
        source.drain()
    assert found(source) == []
    entries.scan = lambda: iter([(column(2, 4), column(2, 4))])  # type: ignore[method-assign]
    assert sorted(found(source)) == [(Cause.CHANGE, [1, 3]), (Cause.CHANGE, [4])]
    assert source.sweeps == 4
