"""When a loss is mended: soon, not again and again, and until nothing is left in doubt.

To read a whole map costs time, and on the processor that receives traffic it can itself keep probes
from running. So a repair waits until the losses have paused for a moment, and repairs that
follow each other wait longer and longer.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.node.capturing import Repairs

QUIET_SECONDS = 1.0  # without further losses, before a repair begins
WAIT_SECONDS_MAX = 5.0  # a repair begins though losses go on
PAUSE_SECONDS_MIN = 2.0  # between two repairs, doubled with each one that follows closely
PAUSE_SECONDS_MAX = 120.0
ROUNDS_MAX = 3  # of one repair, while keys had to be left out


@dataclass(slots=True)
class RepairPlan:
    """Decides for one map, from what it is told at each look; times are of one steady clock."""

    _lost: int = 0
    _lost_since: float | None = None  # first loss that no repair has covered
    _lost_last: float = 0.0
    _rounds: int = 0
    _finished: int = 0
    _not_before: float = 0.0
    _pause: float = PAUSE_SECONDS_MIN
    _ended_at: float = 0.0

    @property
    def open(self) -> bool:
        """Whether something was lost that no repair has begun to mend."""
        return self._lost_since is not None

    def look(self, now: float, lost: int, repairs: Repairs) -> bool:
        """Whether to begin a repair now. ``lost``: of the map so far."""
        if lost > self._lost:
            self._lost, self._lost_last = lost, now
            self._lost_since = now if self._lost_since is None else self._lost_since
        if repairs.finished > self._finished:
            self._finished, self._ended_at = repairs.finished, now
            if not repairs.deferred or self._rounds >= ROUNDS_MAX:
                self._rounds = 0
            elif self._lost_since is None:
                self._lost_since = now
        if self._lost_since is None or repairs.going_on or now < self._not_before:
            return False
        quiet = now - self._lost_last >= QUIET_SECONDS
        if not quiet and now - self._lost_since < WAIT_SECONDS_MAX:
            return False
        self._begin(now)
        return True

    def _begin(self, now: float) -> None:
        follows = self._ended_at > 0 and now - self._ended_at < 2 * self._pause
        self._pause = min(self._pause * 2, PAUSE_SECONDS_MAX) if follows else PAUSE_SECONDS_MIN
        self._not_before = now + self._pause
        self._lost_since = None
        self._rounds += 1
