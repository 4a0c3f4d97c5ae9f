"""Which snapshot is loaded when the log has been cut, and what happens when there is none."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from bridge.bus.memory import MemoryBus
from bridge.bus.memory_log import MemoryLog
from bridge.bus.memory_snapshots import MemorySnapshotStore
from bridge.bus.snapshots import Snapshots
from bridge.core.joining import Plan, Way, plan_start
from bridge.core.snapshots import Log
from bridge.model import Anchor, Manifest, MapInfo, Origin
from bridge.node import choosing
from bridge.node.choosing import Chooser
from bridge.node.report import LogReport

CLUSTER, MAP = "testing", "flows"


class World:
    """A log of 10 messages of which 4 are forgotten, and a stream of snapshots."""

    def __init__(self) -> None:
        self.log = MemoryLog(CLUSTER)
        for number in range(10):
            self.log.append("subject", b"", f"id {number}")
        self.log.truncate(5)
        self.snapshots = Snapshots(MemorySnapshotStore(), CLUSTER)
        self.chooser = Chooser(
            MAP,
            CLUSTER,
            MemoryBus(self.log),
            self.snapshots,
            LogReport(json=True),
            MapInfo(1, MAP, 1, 16, 24, 100),
        )

    def manifest(self, position: int) -> Manifest:
        origin = Origin(CLUSTER, MAP, "n1", 3)
        at = self.log.read(position).stored_at_ns
        anchor = Anchor(position, at)
        return Manifest(origin, self.log.id, position, anchor, 0, 1.0, 0, 16, 24, 0, (), 0, 0)


def plan(log: Log, snapshot: Manifest | None) -> Plan:
    return plan_start(None, log, snapshot, publishes=True, known=False)


async def test_the_snapshot_at_the_cut_is_loaded() -> None:
    world = World()
    await world.snapshots.seal(world.manifest(7))
    choice = await world.chooser.choose(plan, 0)
    assert (choice.plan.way, choice.plan.after, choice.head) == (Way.LOAD, 7, 10)


async def test_one_that_appears_meanwhile_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "RETRY_SECONDS", 0.01)
    world = World()
    choosing_it = asyncio.create_task(world.chooser.choose(plan, 0))
    await asyncio.sleep(0.05)
    assert not choosing_it.done()
    await world.snapshots.seal(world.manifest(6))
    choice = await choosing_it
    assert (choice.plan.way, choice.plan.after, choice.unmended) == (Way.LOAD, 6, False)


@pytest.mark.parametrize("wrong", ["sizes", "anchor", "log", "behind"])
async def test_one_that_does_not_fit_is_none(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choosing, "AWAIT_SECONDS_MAX", 0.0)
    world = World()
    right = world.manifest(7)
    await world.snapshots.seal(
        {
            "sizes": replace(right, value_size=32),
            "anchor": replace(right, anchor=Anchor(7, 5)),
            "log": replace(right, log="another"),
            "behind": right,
        }[wrong]
    )
    choice = await world.chooser.choose(plan, 8 if wrong == "behind" else 0)
    assert (choice.plan.way, choice.plan.after) == (Way.AWAIT, 4)
    assert choice.unmended, "it goes on with what is left, and that is counted"


async def test_an_anchor_that_was_forgotten_says_nothing_against_a_snapshot() -> None:
    world = World()
    await world.snapshots.seal(replace(world.manifest(7), anchor=Anchor(2, 5)))
    assert (await world.chooser.choose(plan, 0)).plan.way is Way.LOAD


async def test_a_map_that_needs_the_log_itself_goes_on_with_what_is_left() -> None:
    world = World()
    await world.snapshots.seal(world.manifest(7))
    choice = await replace(world.chooser, loads=False).choose(plan, 0)
    assert (choice.plan.way, choice.plan.after, choice.unmended) == (Way.AWAIT, 4, True)
