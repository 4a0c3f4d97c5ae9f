"""A histogram of delays with buckets of constant relative width, filled a column at a time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

_PER_OCTAVE = 16  # a bucket is 2**(1/16), so a percentile is right to 4.5 %
_BUCKETS = 40 * _PER_OCTAVE  # 1 ns to 18 minutes
SAMPLE_STRIDE = 16


class DelayHistogram:
    """Delays in nanoseconds. Every ``SAMPLE_STRIDE``-th row of a column is counted."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts = np.zeros(_BUCKETS, np.int64)

    def add(self, delays: npt.NDArray[np.int64]) -> None:
        """Count a column; delays below 1 ns (clocks of two nodes differ) count as 1 ns."""
        sampled = np.maximum(delays[::SAMPLE_STRIDE], 1).astype(np.float64)
        at = np.minimum((np.log2(sampled) * _PER_OCTAVE).astype(np.intp), _BUCKETS - 1)
        self._counts += np.bincount(at, minlength=_BUCKETS)

    def counts(self) -> list[int]:
        """Buckets up to the last that is not empty, to be merged or sent elsewhere."""
        filled = np.flatnonzero(self._counts)
        return [int(c) for c in self._counts[: filled[-1] + 1]] if len(filled) else []

    def percentile(self, share: float) -> float | None:
        """The delay in seconds that ``share`` (0..1) of the samples do not exceed."""
        total = int(self._counts.sum())
        if not total:
            return None
        at = int(np.searchsorted(np.cumsum(self._counts), share * total))
        return float(2.0 ** ((min(at, _BUCKETS - 1) + 0.5) / _PER_OCTAVE)) / 1e9
