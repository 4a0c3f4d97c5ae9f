"""The gate before the judge: holds a map's messages back after a mass change, until told to go on.

Nothing is lost by it: what is held has not been judged, so the map's position stays where it was,
and a bridge that is started again reads it again. A gate that is closed stays closed over restarts
(``bridge.node.halts``).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence

from bridge.apply.inbox import Arrival
from bridge.core.guard import GuardLimits, MassChangeGuard
from bridge.model import DeltaBatch, Origin


class ApplyGate:
    """``admits`` and ``released`` belong to the writer thread; the rest to any thread.

    ``count``: how many entries the map holds now. ``on_halt`` gets the reason when the gate closes.
    While it is not ``armed`` (a map that joins reads history) everything passes, but
    for keys that a snapshot sweeps out of a map that was bridged before.
    """

    def __init__(
        self,
        origin: Origin,
        limits: GuardLimits,
        *,
        count: Callable[[], int],
        on_halt: Callable[[str], None],
        halted: str = "",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.armed = False
        self.halted = halted  # the reason; empty: messages pass
        self.halts = 0
        self._origin = origin
        self._guard = MassChangeGuard(limits)
        self._any = limits.any
        self._count = count
        self._on_halt = on_halt
        self._clock = clock
        self._held: list[Arrival] = []
        self._passes_until = 0  # an operator said that all up to here may pass
        self._resumed = threading.Event()

    @property
    def held(self) -> int:
        """Messages that wait behind the gate."""
        return len(self._held)

    def admits(
        self,
        arrivals: Sequence[Arrival],
        changes: Sequence[DeltaBatch] | None = None,
        *,
        joining: bool = False,
    ) -> bool:
        """Whether they may be judged now: all or none. If not, they are held.

        ``changes``: what of them counts; ``None``: what they say by others than this node's bridge.
        ``joining``: they count although the map has not joined.
        """
        if self.halted:
            self._held.extend(arrivals)
            return False
        if not self._any or not (self.armed or joining):
            return True
        if changes is None:
            changes = [
                arrival.delta.batch
                for arrival in arrivals
                if arrival.delta.origin != self._origin and arrival.sequence > self._passes_until
            ]
        elif arrivals[-1].sequence <= self._passes_until:
            return True
        if not changes or not self._guard.note(self._clock(), changes):
            return True
        found = self._guard.judge(self._count())
        if found is None:
            return True
        self._resumed.clear()
        self.halted = f"mass change: {found} (last by node {arrivals[-1].delta.origin.node})"
        self.halts += 1
        self._held.extend(arrivals)
        self._on_halt(self.halted)
        return False

    def resume(self, until: int) -> None:
        """Let everything that is held pass, and all up to ``until`` of the stream unasked."""
        self._passes_until = max(until, self._passes_until)
        self._resumed.set()

    def released(self) -> list[Arrival]:
        """What was held, once after ``resume``."""
        if not self.halted or not self._resumed.is_set():
            return []
        self._guard.clear()
        self.halted = ""
        held, self._held = self._held, []
        return held
