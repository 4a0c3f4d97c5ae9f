"""Whether a map holds what the stream says, and how far it is behind.

Made for a question with consequences: may this node take over? So it is never answered with yes
before the stream has been read to its end and written, while the broker is away, or while the
map lags by more than a limit.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

LAG_SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Sync:
    """``behind_seconds``: so long ago the map held all that the stream held; inf: never."""

    synced: bool
    behind_seconds: float


@dataclass(slots=True)
class SyncGate:
    """Told of the map's state at each look; times are of one steady clock."""

    lag_seconds_max: float = LAG_SECONDS_MAX
    _level: float | None = None  # when the map last had everything

    def look(self, now: float, *, ready: bool, level: bool, newest: float) -> Sync:
        """The answer now.

        ready         the map has joined, and the broker is there
        level         nothing of the stream waits to be read or written
        newest        when the newest change that is written was made
        """
        if ready and level:
            self._level = now
        elif ready and self._level is not None:
            # Under steady load something always waits: then the newest that is written tells.
            self._level = max(self._level, newest)
        behind = math.inf if self._level is None else now - self._level
        return Sync(ready and behind <= self.lag_seconds_max, behind)
