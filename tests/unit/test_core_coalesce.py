"""Waiting changes merged key by key, and what the judge then believes to be under way."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.bus.outbox import Outbox
from bridge.core.coalesce import coalesce
from bridge.core.replica import Replica
from bridge.model import Cause, Delta, DeltaBatch, Op, Origin
from bridge.node import lane as lanes
from bridge.node.lane import Lane

OWN, OTHER = Origin("c", "m", "own", 1), Origin("c", "m", "other", 2)


def batch(*changes: tuple[int, int], cause: Cause = Cause.CHANGE) -> DeltaBatch:
    """Changes of one byte; the value 0 deletes, 255 evicts."""
    ops = [{0: Op.DELETE, 255: Op.EVICT}.get(value, Op.UPDATE) for _, value in changes]
    column = np.array(changes, np.uint8).reshape(-1, 2)
    n = len(changes)
    times = np.arange(1, n + 1, dtype=np.uint64)
    return DeltaBatch(
        np.array(ops, np.uint8),
        column[:, :1].copy(),
        column[:, 1:].copy(),
        times,
        times,
        np.zeros(n, np.uint32),
        cause,
    )


def changes(found: DeltaBatch) -> list[tuple[int, int]]:
    return list(zip(found.keys[:, 0].tolist(), found.values[:, 0].tolist(), strict=True))


def keys(found: DeltaBatch | None) -> list[int]:
    return [] if found is None else sorted(found.keys[:, 0].tolist())


def test_the_last_change_of_each_key_stays_in_order() -> None:
    merged = coalesce([batch((1, 1), (2, 1)), batch((1, 2), (3, 1)), batch((2, 0))])
    assert changes(merged) == [(1, 2), (3, 1), (2, 0)]


def test_a_delete_stays_when_the_key_was_added_among_the_same_changes() -> None:
    assert changes(coalesce([batch((1, 1), (1, 0))])) == [(1, 0)]


def test_evictions_replace_nothing_and_stay() -> None:
    merged = coalesce([batch((1, 1), (1, 255)), batch((2, 255), (2, 2))])
    assert changes(merged) == [(1, 1), (1, 255), (2, 255), (2, 2)]


def test_a_mixture_of_causes_is_a_change() -> None:
    assert coalesce([batch((1, 1), cause=Cause.SCAN)]).cause is Cause.SCAN
    mixed = coalesce([batch((1, 1), cause=Cause.SCAN), batch((1, 2), cause=Cause.REPAIR)])
    assert (mixed.cause, changes(mixed)) == (Cause.CHANGE, [(1, 2)])


def test_what_was_taken_is_not_touched() -> None:
    outbox = Outbox(1, 1, 1 << 20)
    outbox.put(batch((1, 1), (2, 1), (1, 2)))
    assert outbox.take(1) is not None
    assert outbox.merge(coalesce) is None, "nearly nothing is new"
    for _ in range(4):
        outbox.put(batch(*((key, 7) for key in range(10, 14))))
    outbox._unmerged_bytes = 1 << 20
    found = outbox.merge(coalesce)
    assert found is not None
    first, merged = found
    assert (first, changes(merged)) == (2, [(2, 1), (1, 2), *((key, 7) for key in range(10, 14))])
    statistics = outbox.statistics()
    assert (statistics.rows, statistics.rows_merged, statistics.bytes) == (6, 12, merged.nbytes)
    taken = outbox.take(100)
    assert taken is not None
    assert (taken[0], changes(taken[1])) == (2, changes(merged)), "no number is left out"


def test_keys_of_merged_changes_stay_pending_under_their_new_numbers() -> None:
    judge = Replica(OWN, publishes=True, applies=True)
    judge.capture(batch((1, 1), (2, 1), (3, 1)))  # 1 to 3, of which 1 was sent
    judge.capture(batch((2, 2), (4, 1)))  # 4 and 5
    merged = coalesce([batch((2, 1), (3, 1)), batch((2, 2), (4, 1))])
    judge.replaced(2, merged)
    assert judge.captured == 4
    foreign = Delta(OTHER, 1, batch(*((key, 9) for key in range(1, 6))))
    assert keys(judge.judge([foreign]).writes) == [5]
    judge.judge([Delta(OWN, 1, batch((1, 1)))])
    assert judge.pending_rows == 3
    judge.judge([Delta(OWN, 2, merged.take(slice(0, 2)))])
    foreign = Delta(OTHER, 6, batch(*((key, 9) for key in range(1, 6))))
    assert keys(judge.judge([foreign]).writes) == [1, 2, 3, 5]
    judge.judge([Delta(OWN, 4, merged.take(slice(2, 3)))])
    assert judge.pending_rows == 0


def test_evictions_among_merged_changes_are_not_pending() -> None:
    judge = Replica(OWN, publishes=True, applies=True)
    judge.capture(batch((1, 255), (2, 1), (3, 255)))
    judge.capture(batch((1, 1)))
    judge.replaced(1, coalesce([batch((1, 255), (2, 1), (3, 255)), batch((1, 1))]))
    assert (judge.captured, judge.pending_rows) == (4, 2)
    foreign = batch(*((key, 9) for key in range(1, 4)))
    assert keys(judge.judge([Delta(OTHER, 1, foreign)]).writes) == [3]
    judge.judge([Delta(OWN, 1, batch((1, 255), (2, 1)))])
    assert keys(judge.judge([Delta(OTHER, 4, foreign)]).writes) == [2, 3]


def test_a_lane_merges_only_when_nothing_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    made = Lane(Replica(OWN, publishes=True, applies=True), Outbox(1, 1, 4096))
    rows = [(key, 1) for key in range(31)]
    rounds = 0
    while made.sink(batch(*rows)):
        rounds += 1
    assert rounds > 1
    assert made.counters.merges == 0, "the broker may only be slow"
    monkeypatch.setattr(lanes, "STALLED_SECONDS", 0.0)
    assert made.sink(batch(*rows))
    assert made.outbox is not None
    statistics = made.outbox.statistics()
    assert made.counters.merges == 1
    assert statistics.rows == 2 * 31
    assert statistics.rows_merged == (rounds - 1) * 31
    assert made.replica.captured == 2 * 31


def test_a_map_larger_than_the_outbox_leaves_its_changes_in_the_ring(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(lanes, "STALLED_SECONDS", 0.0)
    made = Lane(Replica(OWN, publishes=True, applies=True), Outbox(1, 1, 1024))
    accepted = [
        made.sink(batch(*((key, 1) for key in range(at, at + 8)))) for at in range(0, 248, 8)
    ]
    assert not accepted[-1]
    assert made.counters.refused > 0
    assert made.outbox is not None
    assert made.outbox.statistics().rows_merged == 0
    assert made.replica.captured == made.replica.pending_rows == 8 * sum(accepted)
