"""A log that ends before what is known to have been in it: lost its end, or only seems to.

Positions mean nothing any more when acknowledged messages are gone, and a map that joins anew takes
the log's history over what its programs wrote. So that is not believed at once: the answer may be
that of a leader which was cut off, or has just taken over. nats-server gives leadership up after
ten seconds without the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable

BELIEVED_SECONDS = 12.0  # that a log has to be told to be shorter, again and again


class Shorter:
    """``told`` with each answer; of one log and one reader or publisher."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None

    def told(self, *, shorter: bool) -> bool:
        """Whether it is to be believed now that the log has lost its end."""
        if not shorter:
            self._since = None
            return False
        now = self._clock()
        self._since = now if self._since is None else self._since
        return now - self._since >= BELIEVED_SECONDS
