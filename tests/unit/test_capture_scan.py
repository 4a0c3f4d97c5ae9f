"""The scan at the start, interleaved with what a ring brings."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from bridge.bus.outbox import Outbox
from bridge.capture.scan import REPAIR_POLL_SECONDS, ScannedSource, SweepSource
from bridge.capture.source import Losses
from bridge.core import scanrows
from bridge.core.fingerprints import Fingerprints
from bridge.core.identity import Identity
from bridge.core.replica import Replica
from bridge.errors import BridgeError
from bridge.kernel.maptypes import MapType
from bridge.model import U8, Cause, DeltaBatch, MapInfo, Op, Origin
from bridge.node.lane import PLAIN, Lane

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

    info: MapInfo = INFO

    def __init__(self, *, failures: int = 0) -> None:
        self.failures = failures
        self.held: dict[bytes, bytes] = {}

    def scan(self) -> Iterator[tuple[U8, U8]]:
        yield column(1, 2), column(1, 2)
        if self.failures:
            self.failures -= 1
            raise BridgeError("scan: unsteady")
        yield column(3), column(3)

    def lookup(self, key: bytes) -> bytes | None:
        return self.held.get(key)


def found(source: ScannedSource | SweepSource) -> list[tuple[Cause, list[int]]]:
    return [(b.cause, sorted(b.keys[:, 0].tolist())) for b in source.drain()]


def test_a_scan_that_breaks_off_loses_nothing_of_the_ring_and_begins_anew() -> None:
    ring, way = Ring(change(7), change(8), change(9)), lane()
    source = ScannedSource(ring, Entries(failures=1), ready=lambda: True, comparison=way)
    assert published(source, way, 1) == [(Cause.CHANGE, Op.UPDATE, [7])]
    assert published(source, way, 1) == [(Cause.CHANGE, Op.UPDATE, [8])]
    with pytest.raises(BridgeError, match="unsteady"):
        source.drain()
    found = published(source, way, 11)
    assert found[0] == (Cause.CHANGE, Op.UPDATE, [9])
    assert found[1:] == [
        (Cause.SCAN, Op.DELETE, [7, 8]),  # 9 came after the scan began
        (Cause.SCAN, Op.UPDATE, [1, 2, 3]),
    ]
    assert source.interval == REPAIR_POLL_SECONDS


def test_it_waits_until_the_stream_has_been_read() -> None:
    ready = False
    way = lane()
    source = ScannedSource(Ring(change(2)), Entries(), ready=lambda: ready, comparison=way)
    assert published(source, way, 11) == [(Cause.CHANGE, Op.UPDATE, [2])]
    assert not source.started
    ready = True
    assert published(source, way, 11) == [(Cause.SCAN, Op.UPDATE, [1, 3])]
    assert source.started


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


def test_after_a_loss_the_whole_map_is_compared() -> None:
    entries, way = Entries(), lane()
    ring = Ring()
    source = ScannedSource(ring, entries, ready=lambda: True, comparison=way)
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
    source = ScannedSource(ring, entries, ready=lambda: True, comparison=way)
    assert source.drain() == []  # the first chunk is read: key 1 has value 1
    late = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
    ring.batches = [DeltaBatch.of_entries(Op.UPDATE, column(1), column(9), late + 1, began=late)]
    published: list[tuple[int, int]] = []
    while not source.started:
        for batch in source.drain():
            assert way.sink(batch)
            published += zip(batch.keys[:, 0].tolist(), batch.values[:, 0].tolist(), strict=True)
    assert [value for key, value in published if key == 1] == [9]


def lane(identity: Identity = PLAIN) -> Lane:
    replica = Replica(
        Origin("c", "m", "n", 1), publishes=True, applies=True, fingerprints=Fingerprints(1)
    )
    return Lane(replica, Outbox(1, 1), identity)


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


def many(count: int, value: int) -> tuple[U8, U8]:
    return column(*range(count)), column(*[value] * count)


def published(source: ScannedSource, way: Lane, drains: int) -> list[tuple[Cause, Op, list[int]]]:
    """What comes out in so many drains."""
    out = []
    for _ in range(drains):
        for batch in source.drain():
            assert way.sink(batch)
            out.append((batch.cause, Op(int(batch.ops[0])), sorted(batch.keys[:, 0].tolist())))
    return out


def test_a_scan_in_many_slices_publishes_what_differs_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scanrows, "_SLICE_ROWS", 3)
    entries, way, ring = Entries(), lane(), Ring()
    entries.scan = lambda: iter([many(200, 1)])  # type: ignore[method-assign]
    source = ScannedSource(ring, entries, ready=lambda: True, comparison=way)
    found = published(source, way, 1_009)
    assert source.started
    assert len(found) > 7, "it came slice by slice"
    assert {(cause, op) for cause, op, _ in found} == {(Cause.SCAN, Op.UPDATE)}
    assert sorted(key for _, _, keys in found for key in keys) == list(range(200))
    source.repair()
    assert published(source, way, 1_009) == []
    assert source.repairs == 1


def test_the_map_is_compared_at_its_interval_too() -> None:
    entries, way, ring = Entries(), lane(), Ring()
    source = ScannedSource(ring, entries, ready=lambda: True, comparison=way, sweep_seconds=1e-9)
    published(source, way, 11)
    entries.scan = lambda: iter([(column(1, 2, 3), column(1, 22, 3))])  # type: ignore[method-assign]
    assert published(source, way, 23) == [(Cause.CHANGE, Op.UPDATE, [2])]
    assert source.sweeps > 0
    assert (source.found, source.repairs) == (1, 0)


def test_what_the_ring_reports_is_not_found_again() -> None:
    """The scan sees a change whose record is still in the ring."""
    entries, way, ring = Entries(), lane(), Ring()
    source = ScannedSource(ring, entries, ready=lambda: True, comparison=way, sweep_seconds=1e-9)
    published(source, way, 11)
    entries.scan = lambda: iter([(column(1, 2, 3), column(1, 22, 3))])  # type: ignore[method-assign]
    late = time.clock_gettime_ns(time.CLOCK_MONOTONIC) + 60 * 10**9
    early = DeltaBatch.of_entries(Op.UPDATE, column(3), column(3), 2, began=1)
    changed = DeltaBatch.of_entries(Op.UPDATE, column(2), column(22), late, began=late)
    ring.batches = [early] * 7 + [changed]
    found = published(source, way, 41)
    assert [one for one in found if 2 in one[2]] == [(Cause.CHANGE, Op.UPDATE, [2])]
    assert source.found == 0


def test_nothing_is_compared_before_older_operations_have_ended() -> None:
    entries, way = Entries(), lane()
    way.attached()
    source = ScannedSource(
        Ring(change(7)), entries, ready=lambda: True, comparison=way, settle_seconds=3600.0
    )
    assert published(source, way, 11) == [(Cause.CHANGE, Op.UPDATE, [7])]
    assert way.replica.dirty_keys == 1, "an older operation may still write it"
    assert not source.started


def test_keys_in_doubt_are_read_again_where_nothing_is_applied() -> None:
    replica = Replica(
        Origin("c", "m", "n", 1),
        publishes=True,
        applies=False,
        fingerprints=Fingerprints(1),
        rereads=True,
    )
    way, entries = Lane(replica, Outbox(1, 1)), Entries()
    entries.held = {b"\x07": b"\x63"}
    entries.scan = lambda: iter([])  # type: ignore[method-assign]
    overlapping = [
        DeltaBatch.of_entries(Op.UPDATE, column(7, 8), column(1, 1), 30, began=10),
        DeltaBatch.of_entries(Op.UPDATE, column(7, 8), column(2, 2), 40, began=20),
    ]
    source = ScannedSource(Ring(*overlapping), entries, ready=lambda: True, comparison=way)
    published(source, way, 2)
    assert replica.dirty_keys == 2
    again = [batch for _ in range(3) for batch in source.drain()]
    assert [len(batch) for batch in again] == [2]
    rows = zip(again[0].keys[:, 0], again[0].ops, again[0].values[:, 0], strict=True)
    assert sorted((int(k), Op(o), int(v)) for k, o, v in rows) == [
        (7, Op.UPDATE, 0x63),
        (8, Op.DELETE, 0),
    ]
    assert way.sink(again[0])
    assert replica.dirty_keys == 0


@pytest.mark.parametrize("map_type", [MapType.HASH, MapType.LRU_HASH])
def test_an_entry_that_the_kernel_may_have_dropped_is_not_deleted(map_type: MapType) -> None:
    entries, way = Entries(), lane(Identity(evicts=map_type is MapType.LRU_HASH))
    entries.info = replace(INFO, type=map_type)
    source = ScannedSource(Ring(change(7)), entries, ready=lambda: True, comparison=way)
    found = published(source, way, 11)
    source.repair()
    entries.scan = lambda: iter([(column(1), column(1))])  # type: ignore[method-assign]
    found += published(source, way, 11)
    deleted = [key for _, op, keys in found if op is Op.DELETE for key in keys]
    assert deleted == ([] if map_type is MapType.LRU_HASH else [2, 3, 7])
