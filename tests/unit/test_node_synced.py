"""When a map may be called synced."""

from __future__ import annotations

import math

from bridge.node.synced import SyncGate


def look(
    gate: SyncGate,
    now: float,
    *,
    ready: bool = True,
    level: bool = True,
    sequence: int = 1,
    lag_seconds: float = 0.0,
) -> tuple[bool, float]:
    found = gate.look(now, ready=ready, level=level, sequence=sequence, lag_seconds=lag_seconds)
    return found.synced, found.behind_seconds


def test_not_before_it_has_joined() -> None:
    gate = SyncGate()
    assert look(gate, 1.0, ready=False, level=True) == (False, math.inf)
    assert look(gate, 2.0, level=False) == (False, math.inf)
    assert look(gate, 3.0) == (True, 0.0)


def test_a_broker_that_is_away_ends_it_at_once() -> None:
    gate = SyncGate()
    look(gate, 1.0)
    assert look(gate, 1.5, ready=False) == (False, 0.5)
    assert look(gate, 2.0) == (True, 0.0)


def test_a_reader_that_is_stuck_is_not_synced_after_the_limit() -> None:
    gate = SyncGate(lag_seconds_max=5.0)
    look(gate, 0.0, sequence=9)
    assert look(gate, 4.0, level=False, sequence=9) == (True, 4.0)
    assert look(gate, 6.0, level=False, sequence=9, lag_seconds=0.1) == (False, 6.0)


def test_under_steady_load_the_age_of_what_is_written_tells() -> None:
    gate = SyncGate(lag_seconds_max=5.0)
    look(gate, 0.0, sequence=0)
    for second in range(1, 60):
        found = look(gate, second, level=False, sequence=second, lag_seconds=0.25)
        assert found == (True, 0.25)
    assert look(gate, 60.0, level=False, sequence=60, lag_seconds=30.0)[1] == 1.25
    for second in range(61, 90):
        found = look(gate, second, level=False, sequence=second, lag_seconds=30.0)
    assert found == (False, 30.0)
