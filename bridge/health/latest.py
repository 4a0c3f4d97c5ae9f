"""What the event loop last said, for the threads that answer others.

Invariant: whoever asks never waits for the event loop and never makes it work. The loop leaves what
it knows here, as one immutable value that is replaced as a whole; a loop that hangs is seen by the
age of what it left.
"""

from __future__ import annotations

import enum
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

STALE_SECONDS = 3.0  # a document is replaced twice a second
DEAD_SECONDS = 10.0  # without a sign of life


class Phase(enum.StrEnum):
    """Where the process is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class View:
    """What is known at one moment. ``document`` is that of ``status.json``, empty at first."""

    phase: Phase
    step: str
    document: Mapping[str, object]
    age_seconds: float  # of the document
    silent_seconds: float  # since the last sign of life

    @property
    def alive(self) -> bool:
        return self.silent_seconds <= DEAD_SECONDS

    @property
    def fresh(self) -> bool:
        return self.age_seconds <= STALE_SECONDS


@dataclass(frozen=True, slots=True)
class _Said:
    phase: Phase = Phase.STARTING
    step: str = "starting"
    document: Mapping[str, object] | None = None
    told_at: float = 0.0
    beat_at: float = 0.0


class Latest:
    """Written by the event loop, read by any thread. ``clock``: steady seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._said = _Said(beat_at=clock())

    def beat(self) -> None:
        """A sign of life."""
        self._said = replace(self._said, beat_at=self._clock())

    def enter(self, phase: Phase, step: str) -> None:
        """What the process does now, for people."""
        self._said = replace(self._said, phase=phase, step=step, beat_at=self._clock())

    def tell(self, document: Mapping[str, object]) -> None:
        """A new document, which must not change any more."""
        now = self._clock()
        self._said = replace(self._said, document=document, told_at=now, beat_at=now)

    def view(self) -> View:
        said, now = self._said, self._clock()
        if said.document is None:
            return View(said.phase, said.step, {}, float("inf"), now - said.beat_at)
        return View(said.phase, said.step, said.document, now - said.told_at, now - said.beat_at)


def section(found: object, *names: str) -> Mapping[str, object]:
    """The table of a document under ``names``, empty when there is none."""
    for name in names:
        found = found.get(name) if isinstance(found, Mapping) else None
    return found if isinstance(found, Mapping) else {}
