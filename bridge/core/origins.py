"""What has been seen of each origin: duplicates are cut off, gaps are noticed.

Invariant: of each origin (node, map, incarnation) every sequence number is let through at most
once and in rising order; a jump forward is reported as a gap, once, and never hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.model import Delta, Origin

ORIGINS_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Admission:
    """``first_row``: rows before it were seen already. ``missed``: sequences jumped over."""

    first_row: int
    missed: int


class OriginTracker:
    """Next expected sequence per origin; the oldest origins are forgotten beyond a bound."""

    __slots__ = ("_jumped", "_next")

    def __init__(self) -> None:
        self._next: dict[Origin, int] = {}
        self._jumped = False

    def jump(self) -> None:
        """A snapshot stands for all that was before: what is seen next of an origin is its first.

        Nothing that was seen is seen again, as reading goes on behind the snapshot.
        """
        self._next.clear()
        self._jumped = True

    def admit(self, delta: Delta) -> Admission:
        """Judge one message and remember it as seen."""
        expected = self._next.pop(delta.origin, None)
        end = delta.last_sequence + 1
        if expected is None:
            # The first message seen of an origin need not be its first: history may have expired.
            self._remember(delta.origin, end)
            return Admission(0, 0 if self._jumped else delta.first_sequence - 1)
        self._remember(delta.origin, max(expected, end))
        seen = min(max(expected - delta.first_sequence, 0), len(delta.batch))
        return Admission(seen, max(delta.first_sequence - expected, 0))

    def _remember(self, origin: Origin, expected: int) -> None:
        self._next[origin] = expected
        if len(self._next) > ORIGINS_MAX:
            del self._next[next(iter(self._next))]
