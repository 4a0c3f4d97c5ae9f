"""How a node gets the cluster's state: what ``bridge.node.following`` does, in steps.

Plans, loads, stored parts and their checks are the production code.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from bridge.apply.inbox import Arrival
from bridge.apply.loading import Load
from bridge.bus.snapshots import SnapshotBrokenError
from bridge.core.digest import rows_digest
from bridge.core.joining import Plan, Way, plan_gap, plan_start
from bridge.core.snapshots import usable
from bridge.model import Delta, DeltaBatch, Manifest

if TYPE_CHECKING:
    from tests.simulation.node import Node

T = TypeVar("T")


def now_done(work: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing: what is in memory answers at once."""
    try:
        work.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise AssertionError("it waits")


async def _next(parts: AsyncGenerator[DeltaBatch]) -> DeltaBatch | None:
    return await anext(parts, None)


class Joining:
    """``step`` until it answers that it is done. ``last_missing``: end of a hole, 0: a start."""

    def __init__(self, node: Node, last_missing: int = 0) -> None:
        self.node = node
        self.last_missing = last_missing
        self.plan: Plan | None = None
        self.load: Load | None = None
        self._sent = 0
        self._parts: AsyncGenerator[DeltaBatch] | None = None
        self._digest = 0

    def step(self, now: int) -> bool:
        """Whether anything was done, or is waited for."""
        node = self.node
        if not node.connected or node.writer.busy or not node.settled or node.gate.halted:
            return False
        if self.plan is None:
            self._choose()
        elif self.load is None:
            self._begin(self.plan)
        else:
            try:
                self._part(self.plan, self.load, now)
            except SnapshotBrokenError:
                self.plan = self.load = None
        return True

    def _choose(self) -> None:
        node = self.node
        log, found = node.log.view(), None
        if node.loads:
            found = usable(node.manifests(), log, behind=self.last_missing)
        if found is not None and not self._same_log(found):
            found = None
        if self.last_missing:
            plan = plan_gap(log, found, self.last_missing)
        else:
            saved = node.saved_position()
            plan = plan_start(saved, log, found, publishes=True, known=node.bridged)
        if plan.way is Way.AWAIT:
            return
        self.plan, self._sent = plan, node.publisher.sent
        if plan.snapshot is None:
            node.follow(plan.after)

    def _same_log(self, manifest: Manifest) -> bool:
        anchor = manifest.anchor
        stored = None if anchor is None else self.node.log.stored_at(anchor.sequence)
        return stored is None or anchor is None or stored == anchor.stored_at_ns

    def _begin(self, plan: Plan) -> None:
        """Once the fate of every own message that was sent is known."""
        node, manifest = self.node, plan.snapshot
        assert manifest is not None
        if not self.resolved():
            return
        self.load = Load(
            position=plan.after,
            stored=node.acks.stored_by(plan.after),
            value_size=8,
            keys_now=node.keys_now if plan.sweep_out else None,
            wake=lambda: None,
            guarded=node.bridged,
            learns=plan.way is Way.LEARN,
        )
        self._parts, self._digest = node.snapshots.parts(manifest), 0

    def whole(self, manifest: Manifest) -> bool:
        return self._digest == manifest.digest

    def resolved(self) -> bool:
        return self.node.publisher.stored_rows >= self._sent

    def _part(self, plan: Plan, load: Load, now: int) -> None:
        node, replica, manifest = self.node, self.node.replica, plan.snapshot
        assert manifest is not None
        assert self._parts is not None
        batch = now_done(_next(self._parts))
        if not load.begun:
            load.begin()
            load.settles(replica.jump(load.stored, learns=load.learns))
            node.rejoining &= load.learns
        if batch is not None:
            self._digest = (self._digest + rows_digest(batch)) & 0xFFFF_FFFF_FFFF_FFFF
            node.writer.begin(replica.load(batch), now, node.writer.applied)
            load.wrote(batch)
            return
        if not self.whole(manifest):
            raise SnapshotBrokenError("another digest")
        strangers = load.strangers()
        if strangers is not None and len(strangers):
            end = Arrival(plan.after, Delta(manifest.origin, 1, strangers))
            if load.guarded and not node.gate.admits([end], [strangers], joining=True):
                return
            node.writer.begin(replica.load(strangers), now, plan.after)
        load.finish()
        node.follow(plan.after)


def keys_of(held: dict[int, int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.array(sorted(held), np.uint8).reshape(-1, 1)
