"""When a repair begins."""

from __future__ import annotations

import itertools

from bridge.node.capturing import Repairs
from bridge.node.repairing import PAUSE_SECONDS_MAX, RepairPlan


def begins(plan: RepairPlan, looks: list[tuple[float, int, Repairs]]) -> list[float]:
    return [now for now, lost, repairs in looks if plan.look(now, lost, repairs)]


def test_nothing_lost_nothing_repaired() -> None:
    assert begins(RepairPlan(), [(i / 2, 0, Repairs()) for i in range(100)]) == []


def test_it_waits_for_the_end_of_a_burst_but_not_for_ever() -> None:
    short = [(i / 2, min(i, 4), Repairs()) for i in range(20)]
    assert begins(RepairPlan(), short) == [3.0]
    endless = RepairPlan()
    found = begins(endless, [(i / 2, i, Repairs()) for i in range(13)])
    assert found == [5.5]


def test_not_while_one_goes_on_and_again_for_later_losses() -> None:
    plan = RepairPlan()
    assert begins(plan, [(0.0, 1, Repairs()), (1.0, 1, Repairs())]) == [1.0]
    assert not plan.look(9.0, 2, Repairs(going_on=True))
    assert not plan.look(20.0, 2, Repairs(going_on=True))
    assert plan.look(20.5, 2, Repairs(finished=1))


def test_keys_that_were_left_out_are_looked_at_again_a_few_times() -> None:
    plan, finished, begun = RepairPlan(), 0, []
    for i in range(400):
        lost = 1 if i else 0
        if plan.look(i / 2, lost, Repairs(finished=finished, deferred=3)):
            begun.append(i / 2)
            finished += 1
    assert len(begun) == 3


def test_repairs_that_follow_each_other_wait_longer_and_longer() -> None:
    plan, finished, begun = RepairPlan(), 0, []
    for second in range(3_000):
        if plan.look(float(second), second, Repairs(finished=finished)):
            begun.append(second)
            finished += 1
    pauses = [b - a for a, b in itertools.pairwise(begun)]
    assert pauses == sorted(pauses)
    assert pauses[-1] <= PAUSE_SECONDS_MAX + 6
