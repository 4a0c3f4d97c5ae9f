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
    newest: float = -math.inf,
) -> tuple[bool, float]:
    found = gate.look(now, ready=ready, level=level, newest=newest)
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
    look(gate, 0.0, newest=-0.1)
    assert look(gate, 4.0, level=False, newest=-0.1) == (True, 4.0)
    assert look(gate, 6.0, level=False, newest=-0.1) == (False, 6.0)


def test_under_steady_load_the_newest_change_that_is_written_tells() -> None:
    gate = SyncGate(lag_seconds_max=5.0)
    look(gate, 0.0)
    for second in range(1, 60):
        found = look(gate, second, level=False, newest=second - 0.25)
        assert found == (True, 0.25)
    assert look(gate, 60.0, level=False, newest=30.0)[1] == 1.25
    for second in range(61, 90):
        found = look(gate, second, level=False, newest=second - 30.0)
    assert found == (False, 30.0)


def test_a_process_that_stood_still_does_not_take_what_it_wrote_before_for_new() -> None:
    gate = SyncGate(lag_seconds_max=5.0)
    look(gate, 0.0)
    assert look(gate, 3600.0, level=False, newest=0.5) == (False, 3599.5)
