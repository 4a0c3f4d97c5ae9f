"""The writer thread of a node: what ``bridge.apply.applier`` does with verdicts, in steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from bridge.core.replica import Verdict
from tests.simulation.kernel import entries

if TYPE_CHECKING:
    from tests.simulation.node import Node


@dataclass(slots=True)
class Landing:
    verdict: Verdict
    began: int
    rows: list[int]
    refused: list[int] = field(default_factory=list)
    end: int = 0  # position that is applied when it is done
    settles: bool = False  # keys that were in doubt


@dataclass(slots=True)
class Writer:
    """Belongs to one life of a node's bridge."""

    node: Node
    landing: Landing | None = None
    applied: int = 0  # messages whose writes are finished
    newest: float = 0.0  # when the newest change that is written was stored

    @property
    def busy(self) -> bool:
        return self.landing is not None

    def begin(self, verdict: Verdict, now: int, end: int) -> None:
        if verdict.writes is None:
            self._finish(end)
            return
        self.landing = Landing(verdict, now, list(range(len(verdict.writes))), end=end)

    def settles(self, settles: bool) -> None:
        """What was just begun ends the doubt of some keys."""
        if self.landing is not None:
            self.landing.settles = settles

    def land(self, now: int) -> bool:
        """One entry is written; then all are, and what was refused is told."""
        landing, node = self.landing, self.node
        if landing is None:
            return False
        writes = landing.verdict.writes
        assert writes is not None
        if landing.rows:
            row = landing.rows.pop()
            key, value = entries(writes.take(slice(row, row + 1)))[0]
            if not node.kernel.put(key, value):
                landing.refused.append(row)
            return True
        if landing.verdict.touch is not None:
            landing.verdict.touch.end = self.landed_at(landing, now)
        if landing.refused:
            node.replica.refuse(writes.take(np.array(landing.refused)), full=True)
        self.landing = None
        self._finish(landing.end)
        return True

    def landed_at(self, landing: Landing, now: int) -> int:
        del landing
        return now

    def retry(self, now: int) -> bool:
        """There is room again for what was refused."""
        node = self.node
        if self.landing is not None or node.kernel.full or not node.replica.unwritten_rows:
            return False
        self.begin(node.replica.retry(1), now, self.applied)
        return True

    def _finish(self, end: int) -> None:
        self.applied = end
        if end:
            self.newest = self.node.log.times[end - 1]
