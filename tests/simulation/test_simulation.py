"""The walk with the production core, and proof that it finds what each rule is there for."""

from __future__ import annotations

import pytest

from bridge.core.overlaps import Overlaps
from bridge.core.rejoin import Rejoin
from bridge.core.replica import Replica
from bridge.core.touches import Touches
from tests.simulation.__main__ import wrong_in

SEEDS = 503


def failing(seeds: int) -> list[int]:
    return [seed for seed in range(seeds) if wrong_in(seed)[1]]


def test_all_maps_equal_the_fold() -> None:
    assert failing(SEEDS) == []


@pytest.mark.parametrize(
    ("owner", "rule", "without"),
    [
        (Overlaps, "add", lambda self, keys, entered, left: None),
        (Touches, "doubts", lambda self, keys, entered: None),
        (Replica, "_without_pending", lambda self, batch: batch),
        (Replica, "_observe", lambda self, delta: []),
        (Rejoin, "finish", lambda self: None),
    ],
)
def test_it_finds_a_missing_rule(
    monkeypatch: pytest.MonkeyPatch, owner: type, rule: str, without: object
) -> None:
    monkeypatch.setattr(owner, rule, without)
    assert failing(SEEDS)
