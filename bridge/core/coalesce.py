"""Changes that wait, merged: of each key the last one stays.

Invariant: whoever applies the merged changes ends with what all of them would have given. A delete
stays, also of a key that was added among the same changes: others may know the key from before.
Evictions neither replace a change nor are replaced: they say nothing of what the key should be.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from bridge.core.keys import last_rows
from bridge.model import Cause, DeltaBatch, Op


def coalesce(batches: Sequence[DeltaBatch]) -> DeltaBatch:
    """One batch out of several of the same map, in the order of what stays."""
    causes = {batch.cause for batch in batches}
    cause = causes.pop() if len(causes) == 1 else Cause.CHANGE
    whole = DeltaBatch.concatenate([replace(batch, cause=cause) for batch in batches])
    lasting = np.flatnonzero(whole.ops != Op.EVICT)
    rows = last_rows(whole.keys.take(lasting, axis=0))
    if rows is None:
        return whole
    kept = whole.ops == Op.EVICT
    kept[lasting[rows]] = True
    return whole.take(kept)
