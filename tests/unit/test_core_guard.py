"""The guard: distinct keys, within a window, against what the map holds."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.core import guard as guard_module
from bridge.core.guard import GuardLimits, MassChange, MassChangeGuard
from bridge.model import DeltaBatch, Op


def batch(op: Op, first: int, count: int) -> DeltaBatch:
    keys = np.arange(first, first + count, dtype="<u8").view(np.uint8).reshape(-1, 8)
    return DeltaBatch.of_entries(op, keys, np.zeros((count, 4), np.uint8), 1)


def test_a_mass_delete_is_seen_over_several_batches() -> None:
    guard = MassChangeGuard(GuardLimits(deletes=0.5))
    assert not guard.note(1.0, [batch(Op.DELETE, 0, 97)])
    assert guard.note(2.0, [batch(Op.DELETE, 97, 211)])
    assert guard.judge(1009 - 97) is None, "308 of 1009"
    assert not guard.note(3.0, [batch(Op.DELETE, 308, 101)]), "still below what was found out"
    assert guard.note(4.0, [batch(Op.DELETE, 409, 101)])
    assert guard.judge(1009 - 409) == MassChange("deleted", 510, 1009, 10.0)


def test_the_same_keys_again_and_again_are_no_mass() -> None:
    guard = MassChangeGuard(GuardLimits(changes=0.5))
    for number in range(101):
        guard.note(1.0 + number / 100, [batch(Op.UPDATE, 0, 151)])
    assert guard.judge(1009) is None


def test_what_is_older_than_the_window_counts_no_more() -> None:
    guard = MassChangeGuard(GuardLimits(deletes=0.5, seconds=10.0))
    for second in range(0, 100, 11):
        if guard.note(float(second), [batch(Op.DELETE, second * 1000, 401)]):
            assert guard.judge(1009) is None


def test_updates_are_no_deletes_and_evictions_are_nothing() -> None:
    guard = MassChangeGuard(GuardLimits(deletes=0.1))
    assert not guard.note(1.0, [batch(Op.UPDATE, 0, 1009), batch(Op.EVICT, 0, 1009)])
    guard = MassChangeGuard(GuardLimits(changes=0.1))
    assert not guard.note(1.0, [batch(Op.EVICT, 0, 1009)])
    assert guard.note(1.0, [batch(Op.UPDATE, 0, 1009)])
    assert guard.judge(1009) == MassChange("changed", 1009, 1009, 10.0)


def test_a_small_map_may_be_emptied() -> None:
    guard = MassChangeGuard(GuardLimits(deletes=0.1))
    assert not guard.note(1.0, [batch(Op.DELETE, 0, 97)])


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard_module, "ROWS_MAX", 1009)
    guard = MassChangeGuard(GuardLimits(changes=1.0))
    for number in range(97):
        guard.note(1.0, [batch(Op.UPDATE, number % 7, 499)])
    window = guard._changes
    assert window is not None
    assert window.rows <= 1009
    assert guard.judge(505) is None
    assert guard.judge(504) == MassChange("changed", 505, 504, 10.0)


def test_it_counts_anew_when_an_operator_has_looked() -> None:
    guard = MassChangeGuard(GuardLimits(deletes=0.1))
    assert guard.note(1.0, [batch(Op.DELETE, 0, 997)])
    guard.clear()
    assert not guard.note(1.0, [batch(Op.DELETE, 2000, 97)])
