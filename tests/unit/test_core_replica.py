"""The judge, case by case: writes that did not happen, evictions, memory of own writes."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.core import unwritten
from bridge.core.fingerprints import Fingerprints
from bridge.core.replica import Replica, Verdict
from bridge.core.touches import GRACE_NANOSECONDS
from bridge.model import U8, Delta, DeltaBatch, Op, Origin
from tests.core_kit import compare_whole

OWN, OTHER = Origin("c", "m", "own", 1), Origin("c", "m", "other", 2)


def keys(*numbers: int) -> U8:
    return np.array(numbers, "<u4").view(np.uint8).reshape(-1, 4)


def batch(op: Op, *numbers: int, value: int = 1, began: int = 10, time: int = 11) -> DeltaBatch:
    values = np.full((len(numbers), 4), value if op == Op.UPDATE else 0, np.uint8)
    return DeltaBatch.of_entries(op, keys(*numbers), values, time, began=began)


def replica(*, sweeps: bool = True) -> Replica:
    return Replica(
        OWN, publishes=True, applies=True, fingerprints=Fingerprints(4) if sweeps else None
    )


class Log:
    """Messages of one other node."""

    def __init__(self) -> None:
        self.next = 1

    def message(self, *batches: DeltaBatch) -> Delta:
        whole = DeltaBatch.concatenate(batches)
        delta = Delta(OTHER, self.next, whole)
        self.next += len(whole)
        return delta


def done(judge: Replica, verdict: Verdict, end: int) -> None:
    assert verdict.touch is not None
    verdict.touch.end = end


def rows(found: DeltaBatch | None) -> dict[int, tuple[int, int]]:
    if found is None:
        return {}
    numbers = np.ascontiguousarray(found.keys).view("<u4")[:, 0]
    return {
        int(n): (int(op), int(v[0]))
        for n, op, v in zip(numbers, found.ops, found.values, strict=True)
    }


def sweep(judge: Replica, found: dict[int, int], now: int) -> tuple[U8, U8]:
    """Updated and deleted keys that a scan publishes when it finds these entries."""
    judge.begin_scan(now)
    values = np.repeat(np.array(list(found.values()), np.uint8), 4).reshape(-1, 4)
    differences = compare_whole(judge, keys(*found), values)
    return differences.updated_keys, differences.deleted_keys


def test_a_sweep_does_not_publish_refused_updates_as_deletes() -> None:
    judge = replica()
    verdict = judge.judge([Log().message(batch(Op.UPDATE, 1, 2, 3))])
    done(judge, verdict, 20)
    assert verdict.writes is not None
    judge.refuse(verdict.writes.take(slice(2, 3)), full=True)
    updated, deleted = sweep(judge, {1: 1, 2: 1}, 30)
    assert (len(updated), len(deleted)) == (0, 0)


def test_a_sweep_leaves_alone_what_was_not_written() -> None:
    """The map holds an older value, which must not come back as an own change."""
    judge, log = replica(), Log()
    done(judge, judge.judge([log.message(batch(Op.UPDATE, 1, 2))]), 20)
    verdict = judge.judge([log.message(batch(Op.UPDATE, 1, 2, value=5))])
    done(judge, verdict, 30)
    assert verdict.writes is not None
    judge.refuse(verdict.writes.take(slice(1, 2)), full=False)
    updated, deleted = sweep(judge, {1: 5, 2: 1}, 40)
    assert (len(updated), len(deleted)) == (0, 0)
    again = judge.retry(10)
    assert rows(again.writes) == {2: (Op.UPDATE, 5)}
    done(judge, again, 50)
    assert [len(part) for part in sweep(judge, {1: 5, 2: 5}, 60)] == [0, 0]
    assert [len(part) for part in sweep(judge, {1: 5, 2: 7}, 70)] == [1, 0]


def test_refused_updates_are_tried_again_unless_overtaken() -> None:
    judge, log = replica(), Log()
    verdict = judge.judge([log.message(batch(Op.UPDATE, *range(1, 8)))])
    done(judge, verdict, 20)
    assert verdict.writes is not None
    judge.refuse(verdict.writes, full=True)
    done(judge, judge.judge([log.message(batch(Op.UPDATE, 1, value=2), batch(Op.DELETE, 2))]), 30)
    judge.capture(batch(Op.UPDATE, 3, value=9, began=40, time=41))
    assert rows(judge.retry(3).writes) == dict.fromkeys((4, 5, 6), (Op.UPDATE, 1))
    assert rows(judge.retry(3).writes) == {7: (Op.UPDATE, 1)}
    assert judge.retry(3).writes is None
    assert judge.unwritten_rows == 0


def test_a_change_captured_before_the_refusal_wins() -> None:
    judge = replica()
    verdict = judge.judge([Log().message(batch(Op.UPDATE, 1))])
    judge.capture(batch(Op.UPDATE, 1, value=9, began=15, time=16))
    done(judge, verdict, 20)
    assert verdict.writes is not None
    judge.refuse(verdict.writes, full=True)
    assert judge.retry(10).writes is None


def test_what_waits_for_room_is_bounded_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unwritten, "UNWRITTEN_ROWS_MAX", 5)
    judge, log = replica(), Log()
    for first in (0, 4):
        verdict = judge.judge([log.message(batch(Op.UPDATE, *range(first, first + 4)))])
        done(judge, verdict, 20)
        assert verdict.writes is not None
        judge.refuse(verdict.writes, full=True)
    assert (judge.unwritten_rows, judge.forgotten_rows) == (5, 3)
    assert set(rows(judge.retry(10).writes)) == {3, 4, 5, 6, 7}


def test_an_eviction_elsewhere_does_not_take_the_update_before_it_along() -> None:
    verdict = replica().judge([Log().message(batch(Op.UPDATE, 1, 2), batch(Op.EVICT, 1, 3))])
    assert rows(verdict.writes) == {1: (Op.UPDATE, 1), 2: (Op.UPDATE, 1)}
    assert verdict.changes == 4


def test_an_eviction_elsewhere_is_no_local_change_for_a_sweep() -> None:
    judge, log = replica(), Log()
    done(judge, judge.judge([log.message(batch(Op.UPDATE, 1))]), 20)
    assert judge.judge([log.message(batch(Op.EVICT, 1))]).writes is None
    assert [len(part) for part in sweep(judge, {1: 1}, 30)] == [0, 0]


def test_an_own_eviction_keeps_nobody_out() -> None:
    judge = replica(sweeps=False)
    judge.capture(batch(Op.EVICT, 1))
    assert judge.captured == 1
    assert rows(judge.judge([Log().message(batch(Op.UPDATE, 1, value=4))]).writes)


def test_a_change_that_may_have_begun_before_another_one_ended_is_in_doubt() -> None:
    judge, late = replica(), 2 * GRACE_NANOSECONDS
    judge.capture(batch(Op.UPDATE, 1, 2, began=10, time=20))
    judge.capture(batch(Op.UPDATE, 1, 3, began=0, time=30))
    assert judge.dirty_keys == 1
    judge.capture(batch(Op.UPDATE, 2, began=0, time=late))
    judge.capture(batch(Op.UPDATE, 1, began=late, time=late + 1))
    assert judge.dirty_keys == 0


def test_a_key_in_doubt_is_written_again_though_its_message_ends_inside_of_a_capture() -> None:
    judge = replica()
    first, second = batch(Op.DELETE, 1, time=30), batch(Op.UPDATE, 1, value=5, time=31)
    captured = DeltaBatch.concatenate([first, second, batch(Op.UPDATE, 2, began=40, time=41)])
    judge.capture(captured)
    assert judge.dirty_keys == 1
    verdict = judge.judge([Delta(OWN, 1, captured.take(slice(0, 2)))])
    assert rows(verdict.writes) == {1: (Op.UPDATE, 5)}
    assert judge.judge([Delta(OWN, 3, captured.take(slice(2, 3)))]).writes is None
    assert judge.dirty_keys == 0


def test_writes_are_remembered_while_changes_wait_to_be_captured() -> None:
    """The change began before the write and is drained long after: its order is in doubt."""
    judge = replica(sweeps=False)
    judge.drained(5)
    done(judge, judge.judge([Log().message(batch(Op.UPDATE, 1, value=4))]), 20)
    judge.forget(1_000)
    judge.capture(batch(Op.UPDATE, 1, value=9, began=10, time=12))
    assert judge.dirty_keys == 1
    own = Delta(OWN, 1, batch(Op.UPDATE, 1, value=9))
    again = judge.judge([own])
    assert rows(again.writes) == {1: (Op.UPDATE, 9)}
    done(judge, again, 30)
    judge.drained(500)
    judge.forget(1_000)
    judge.capture(batch(Op.UPDATE, 1, value=9, began=510, time=512))
    assert judge.dirty_keys == 0


def test_a_message_that_ends_inside_of_a_capture_frees_the_keys_that_it_holds() -> None:
    judge = replica()
    captured = batch(Op.UPDATE, 1, 2, 3, 4, value=5)
    judge.capture(captured)
    front = Delta(OWN, 1, captured.take(slice(0, 2)))
    between = Log().message(batch(Op.UPDATE, 1, 2, 3, 4, value=7))
    assert rows(judge.judge([front, between]).writes) == {1: (Op.UPDATE, 7), 2: (Op.UPDATE, 7)}
    judge.judge([Delta(OWN, 3, captured.take(slice(2, 4)))])
    assert judge.pending_rows == 0


def test_evictions_between_own_changes_do_not_shift_what_is_pending() -> None:
    judge = replica()
    parts = [batch(Op.EVICT, 9), batch(Op.UPDATE, 1), batch(Op.EVICT, 8), batch(Op.UPDATE, 2)]
    captured = DeltaBatch.concatenate(parts)
    judge.capture(captured)
    between = Log().message(batch(Op.UPDATE, 1, 2, value=7))
    verdict = judge.judge([Delta(OWN, 1, captured.take(slice(0, 3))), between])
    assert rows(verdict.writes) == {1: (Op.UPDATE, 7)}
    assert judge.pending_rows == 1


@pytest.mark.parametrize("step", ["load", "merge"])
def test_own_evictions_that_are_left_of_a_capture_are_nothing_to_wait_for(step: str) -> None:
    judge = replica()
    captured = DeltaBatch.concatenate([batch(Op.UPDATE, 1), batch(Op.EVICT, 9)])
    judge.capture(captured)
    judge.judge([Delta(OWN, 1, captured.take(slice(0, 1)))])
    if step == "load":
        assert judge.jump(1) is None
    else:
        judge.replaced(2, batch(Op.EVICT, 9))
    assert judge.pending_rows == 0
