"""Losses of a map are told, and mended."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field

from bridge.node.capturing import Capturing
from bridge.node.lane import Lane
from bridge.node.repairing import RepairPlan
from bridge.node.report import Report


@dataclass(slots=True)
class Mender:
    """Looks at the counters of one map, and has it compared with the stream when one moved."""

    name: str
    capturing: Capturing
    lane: Lane
    report: Report
    _losses_told: int = 0
    _repairs_told: int = 0
    _plan: RepairPlan = field(default_factory=RepairPlan)

    def look(self) -> None:
        """Warn when changes were lost since the last call, and have that mended.

        The counters are read before the map is: what is lost later calls for another repair.
        """
        losses, repairs = self.capturing.losses(self.name), self.capturing.repairs(self.name)
        if losses.total > self._losses_told:
            self._losses_told = losses.total
            self.report.warn(
                "changes were lost: the map will be compared with the stream",
                map=self.name,
                **{place: count for place, count in asdict(losses).items() if count},
            )
        if repairs.finished > self._repairs_told:
            self._repairs_told = repairs.finished
            self.report.say(
                "repaired: the map was compared with the stream",
                map=self.name,
                seconds=round(repairs.seconds, 3),
                published_so_far=self.lane.counters.repaired,
            )
        if self._plan.look(time.monotonic(), losses.total, repairs):
            self.capturing.repair(self.name)

    def is_mending(self, losses: int) -> bool:
        """Whether something of what was lost so far is not mended yet."""
        going_on = self.capturing.repairs(self.name).going_on
        return losses > self._losses_told or self._plan.open or going_on
