"""Changes of the stream that the kernel did not take: kept to be written when it does.

Invariant: of each key the newest change is kept, and only while nothing newer is known of the key.
The oldest are forgotten beyond a bound.
"""

from __future__ import annotations

import numpy as np

from bridge.core.keys import KeySet, last_rows
from bridge.model import U8, DeltaBatch

UNWRITTEN_ROWS_MAX = 65_536


class Unwritten:
    """Not thread-safe: the owner's lock makes it atomic with judgement and capture."""

    __slots__ = ("_batch", "forgotten")

    def __init__(self) -> None:
        self._batch: DeltaBatch | None = None
        self.forgotten = 0  # changes beyond the bound

    def __len__(self) -> int:
        return 0 if self._batch is None else len(self._batch)

    @property
    def keys(self) -> U8 | None:
        return None if self._batch is None else self._batch.keys

    def add(self, batch: DeltaBatch) -> None:
        """Keep these changes; they are newer than what is kept."""
        if not len(batch):
            return
        if self._batch is not None:
            batch = DeltaBatch.concatenate([self._batch, batch])
            rows = last_rows(batch.keys)
            batch = batch if rows is None else batch.take(rows)
        beyond = max(len(batch) - UNWRITTEN_ROWS_MAX, 0)
        self.forgotten += beyond
        self._batch = batch.take(slice(beyond, None)) if beyond else batch

    def drop(self, keys: U8) -> None:
        """Something newer is known of these keys."""
        if self._batch is None or not len(keys):
            return
        held = KeySet(keys).holds(self._batch.keys)
        if held.any():
            self._keep(np.flatnonzero(~held))

    def take(self, rows_max: int) -> DeltaBatch | None:
        """The oldest changes, at most ``rows_max``, to be tried again: they are kept no longer."""
        if self._batch is None:
            return None
        taken = self._batch.take(slice(0, rows_max))
        self._keep(np.arange(len(taken), len(self._batch)))
        return taken

    def _keep(self, rows: np.ndarray[tuple[int], np.dtype[np.intp]]) -> None:
        assert self._batch is not None
        self._batch = self._batch.take(rows) if len(rows) else None
