"""What a map that lived on while its bridge was away takes from the stream.

The map holds what programs wrote meanwhile and what the dead bridge had taken in and not published;
the stream holds what others changed. Writing the stream's whole history into such a map would put
old values over newer ones.

Invariant: when all of the stream has been noted, exactly those keys are to be written whose *last*
change behind the saved position is by another node. All other keys keep the kernel's value, and
a comparison of the whole map with the fold finds which of them the stream does not know yet.

Source of the rule: a random-walk model of restarts; without it, a restart under load lost every
change that was captured and not yet stored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bridge.core.keys import last_rows
from bridge.model import DeltaBatch

_UNFOLDED_ROWS_MAX = 262_144


class Rejoin:
    """Collects what to write, in stream order. Memory: one row per key that changed meanwhile."""

    __slots__ = ("_batches", "_foreign", "_rows", "_saved")

    def __init__(self, saved: int) -> None:
        self._saved = saved
        self._batches: list[DeltaBatch] = []
        self._foreign: list[npt.NDArray[np.bool_]] = []
        self._rows = 0

    def note(self, sequence: int, batch: DeltaBatch, *, foreign: bool) -> None:
        """The next change of the stream; ``foreign``: its value is to be written."""
        if sequence <= self._saved or not len(batch):
            return
        self._batches.append(batch)
        self._foreign.append(np.full(len(batch), foreign))
        self._rows += len(batch)
        if self._rows > _UNFOLDED_ROWS_MAX and len(self._batches) > 1:
            folded = self._fold()
            # What is left may be as much as the map holds: then fold at twice as much again.
            self._rows = 0 if folded is None else min(len(folded), _UNFOLDED_ROWS_MAX // 2)

    def finish(self) -> DeltaBatch | None:
        """The writes, one per key; ``None``: there are none."""
        whole = self._fold()
        if whole is None:
            return None
        foreign = self._foreign[0]
        self._batches, self._foreign, self._rows = [], [], 0
        return whole.take(foreign) if foreign.any() else None

    def abandon(self) -> DeltaBatch | None:
        """All that was noted, the last change of each key; nothing of it is to be written."""
        whole = self._fold()
        self._batches, self._foreign, self._rows = [], [], 0
        return whole

    def _fold(self) -> DeltaBatch | None:
        if not self._batches:
            return None
        whole, foreign = _joined(self._batches), np.concatenate(self._foreign)
        rows = last_rows(whole.keys)
        if rows is not None:
            whole, foreign = whole.take(rows), foreign[rows]
        self._batches, self._foreign = [whole], [foreign]
        return whole


def _joined(batches: Sequence[DeltaBatch]) -> DeltaBatch:
    cause = batches[0].cause
    return DeltaBatch.concatenate([replace(b, cause=cause) for b in batches])
