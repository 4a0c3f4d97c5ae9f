"""The seam between what sees changes (probes, an emitting program, sweeps) and what carries them.

A source belongs to one map and is drained by one thread. ``losses`` only ever grow: whoever sees
one move knows that the map must be repaired by comparing its contents.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import Protocol

from bridge.model import DeltaBatch


class Mode(enum.StrEnum):
    """How changes are seen; ``AUTO`` takes the first of the others that the canary proves."""

    AUTO = "auto"
    FENTRY = "fentry"
    KPROBE = "kprobe"
    SYSCALL = "syscall"
    SWEEP = "sweep"


@dataclass(frozen=True, slots=True)
class Losses:
    """Changes that were not recorded, by the place that lost them."""

    ring_full: int = 0  # the ring had no room
    unpaired: int = 0  # an operation's entry and return could not be matched
    fault: int = 0  # key or value could not be read
    stash_full: int = 0  # no room to remember an operation in progress
    rescan: int = 0  # a batch too large to copy: the map must be looked at again

    @property
    def total(self) -> int:
        return sum(getattr(self, f.name) for f in fields(self))


class ChangeSource(Protocol):
    """The changes of one map."""

    def fileno(self) -> int | None:
        """A descriptor that epoll reports readable when there may be changes.

        ``None`` when the source wants to be asked at ``interval`` instead.
        """

    @property
    def interval(self) -> float:
        """Seconds between two calls of ``drain`` when nothing wakes the reader."""

    def drain(self) -> list[DeltaBatch]:
        """What was recorded since the last call, oldest first; bounded work per call."""

    def losses(self) -> Losses: ...

    def close(self) -> None: ...
