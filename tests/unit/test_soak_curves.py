"""What counts as growth in the curves of a soak."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.soak.curves import BOUNDS, Sample, judge_growth, warm_up

SECONDS, WARM = 1800, 300.0


def life(
    memory: Callable[[int], float], first: int = 0, last: int = SECONDS, process: int = 1
) -> list[Sample]:
    return [
        Sample(float(at), "n1", process, memory(at), 17, 6, 0.0) for at in range(first, last, 2)
    ]


def verdict(samples: list[Sample]) -> dict[str, bool]:
    return {found.of: found.good for found in judge_growth(samples, SECONDS, WARM, BOUNDS)}


def test_a_flat_curve_is_good() -> None:
    assert verdict(life(lambda _: 120.0)) == dict.fromkeys(BOUNDS, True)


def test_growth_before_the_warm_up_ends_is_none() -> None:
    assert verdict(life(lambda at: 60.0 + min(at, 299) * 0.5))["memory_mb"]


def test_backlogs_that_go_again_are_none() -> None:
    assert verdict(life(lambda at: 400.0 if at % 100 > 60 else 120.0))["memory_mb"]


@pytest.mark.parametrize("mb_per_minute", [1.0, 5.0])
def test_a_slow_leak_is_found(mb_per_minute: float) -> None:
    found = verdict(life(lambda at: 120.0 + at / 60 * mb_per_minute))
    assert found == {"memory_mb": False, "descriptors": True, "threads": True}


def test_a_process_that_lived_for_a_part_is_not_judged() -> None:
    parts = life(lambda at: 0.1 * at, 0, 900, 1) + life(lambda at: 0.1 * at, 900, SECONDS, 2)
    assert verdict(parts) == {}


@pytest.mark.parametrize(("full_at", "warm"), [(0.0, 300.0), (400.0, 400.0), (1500.0, 720.0)])
def test_the_warm_up_ends_when_the_log_is_full(full_at: float, warm: float) -> None:
    assert warm_up(SECONDS, full_at) == warm
