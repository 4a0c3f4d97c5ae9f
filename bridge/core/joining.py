"""How a map gets the cluster's state when its bridge starts, or meets a hole in the log.

Invariant: what a map holds after joining is a snapshot at S and the log from S + 1, or the whole
log. A position that the log has not kept whole since is worth nothing, for what is missing may
have been this map's; never is a hole stepped over in silence.
"""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field

from bridge.core.snapshots import Log
from bridge.model import Manifest

ACKS_MAX = 65_536


@dataclass(slots=True)
class Acks:
    """Where in the log own changes are, as long as they have not come back from there.

    Beyond ``ACKS_MAX`` the oldest are forgotten: of those nobody knows, so their keys stay pending.
    """

    _known: deque[tuple[int, int]] = field(default_factory=lambda: deque(maxlen=ACKS_MAX))

    def note(self, own: int, at: int, observed: int) -> None:
        """Own changes up to sequence ``own`` are stored at ``at``.

        ``observed``: the newest own sequence that came back. A place that was read beyond is no
        sign of that: the log may have forgotten what stood there.
        """
        while self._known and self._known[0][0] <= observed:
            self._known.popleft()
        self._known.append((own, at))

    def stored_by(self, position: int) -> int:
        """The last own sequence at or before a place in the log."""
        return max((own for own, at in self._known if at <= position), default=0)


class Way(enum.Enum):
    """What is done first."""

    REPLAY = "replay"  # nothing is loaded: the log holds everything
    LOAD = "load"  # the snapshot is written
    LEARN = "learn"  # the map lived on: the snapshot only tells what the stream says
    AWAIT = "await"  # the log is cut and no snapshot covers what is gone


@dataclass(frozen=True, slots=True)
class Plan:
    """``after``: where reading goes on. ``sweep_out``: keys that the snapshot lacks are deleted."""

    way: Way
    after: int
    snapshot: Manifest | None = None
    sweep_out: bool = False


def rejoins(saved: int | None, log: Log, *, publishes: bool) -> bool:
    """Whether a map that lived on keeps what it holds: all since its position can be read.

    A map that only applies is loaded each time: nothing in it is its own.
    """
    return publishes and saved is not None and log.first <= saved + 1 and saved <= log.last


def plan_start(
    saved: int | None, log: Log, snapshot: Manifest | None, *, publishes: bool, known: bool
) -> Plan:
    """``saved``: what had been applied to this very map; ``snapshot``: the newest usable one.

    A map that was never bridged holds what its programs wrote, which is published. One that was
    (``known``) holds what others wrote too: there a key that the snapshot lacks has been deleted
    meanwhile.
    """
    if snapshot is not None and rejoins(saved, log, publishes=publishes):
        assert saved is not None
        return Plan(Way.LEARN, min(saved, snapshot.position), snapshot)
    if snapshot is not None:
        return Plan(Way.LOAD, snapshot.position, snapshot, sweep_out=known or not publishes)
    if log.first <= 1:
        return Plan(Way.REPLAY, 0)
    return Plan(Way.AWAIT, log.first - 1)


def plan_gap(log: Log, snapshot: Manifest | None, last_missing: int) -> Plan:
    """A running map met a hole that ends at ``last_missing``; ``snapshot`` is not older."""
    if snapshot is None:
        return Plan(Way.AWAIT, max(last_missing, log.first - 1))
    return Plan(Way.LOAD, snapshot.position, snapshot, sweep_out=True)
