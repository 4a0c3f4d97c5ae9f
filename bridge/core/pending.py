"""Own changes that have not come back in the stream yet, capture by capture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from bridge.model import U8, U64


@dataclass(frozen=True, slots=True)
class Pending:
    """Own changes of one capture. ``sequences`` of its rows, where they have holes."""

    last_sequence: int
    keys: U8
    sequences: U64 | None

    @property
    def first_sequence(self) -> int:
        if self.sequences is not None:
            return int(self.sequences[0])
        return self.last_sequence - len(self.keys) + 1

    def before(self, sequence: int) -> Pending:
        """What of it comes before an own ``sequence``."""
        if self.last_sequence < sequence:
            return self
        if self.sequences is None:
            count = sequence - self.first_sequence
            return Pending(sequence - 1, self.keys[:count], None)
        count = int(np.searchsorted(self.sequences, np.uint64(sequence)))
        return Pending(sequence - 1, self.keys[:count], self.sequences[:count])

    def behind(self, sequence: int) -> Pending:
        """What of it comes after an own ``sequence`` that has been observed."""
        first = len(self.keys) - (self.last_sequence - sequence)
        if self.sequences is not None:
            first = int(np.searchsorted(self.sequences, np.uint64(sequence), side="right"))
        if first <= 0:
            return self
        rest = None if self.sequences is None else self.sequences[first:]
        return Pending(self.last_sequence, self.keys[first:], rest)
