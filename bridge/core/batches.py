"""What of a batch counts: evictions left out, and of each key the last change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from bridge.core.keys import last_rows
from bridge.model import DeltaBatch, Op


def not_evicted(batch: DeltaBatch) -> npt.NDArray[np.bool_] | None:
    """``bool[n]``: which changes are no evictions; ``None``: all of them."""
    if not len(batch) or int(batch.ops.max()) < Op.EVICT:
        return None
    return np.asarray(batch.ops != Op.EVICT)


def without_evictions(batch: DeltaBatch) -> DeltaBatch:
    """An entry that one node had no room for says nothing of the others' maps."""
    lasting = not_evicted(batch)
    return batch if lasting is None else batch.take(lasting)


def folded_to_last(batches: Sequence[DeltaBatch]) -> DeltaBatch | None:
    """The last change per key over all batches."""
    batches = [b for b in batches if len(b)]
    if not batches:
        return None
    cause = batches[0].cause
    if any(b.cause != cause for b in batches):
        batches = [replace(b, cause=cause) for b in batches]
    whole = DeltaBatch.concatenate(batches)
    rows = last_rows(whole.keys)
    return whole if rows is None else whole.take(rows)
