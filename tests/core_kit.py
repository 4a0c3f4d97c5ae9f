"""A scan that is compared with the fold at one go, by the steps that capture takes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bridge.core.fingerprints import Differences, Fingerprints
from bridge.core.keys import KeySet
from bridge.core.replica import Replica
from bridge.model import U8


def compare_whole(judge: Replica, keys: U8, values: U8, *, complete: bool = True) -> Differences:
    """What the open scan found; ends it. ``complete``: what it lacks was deleted."""
    pieces = judge.cut([(keys, values)], values.shape[1])
    found = _joined(judge.compare(piece, complete=complete) for piece in pieces)
    judge.end_scan()
    return found


def differences(
    table: Fingerprints, keys: U8, values: U8, *, doubtful: KeySet | None = None
) -> Differences:
    """The same for a fold without a judge; ``doubtful``: keys that are left for the next scan."""
    pieces = table.cut([(keys, values)], values.shape[1])
    found = _joined(table.compare(piece, doubtful=doubtful) for piece in pieces)
    table.end()
    return found


def _joined(found: Iterable[Differences]) -> Differences:
    parts = list(found)
    return Differences(
        np.concatenate([part.updated_keys for part in parts]),
        np.concatenate([part.updated_values for part in parts]),
        np.concatenate([part.deleted_keys for part in parts]),
        sum(part.deferred for part in parts),
    )
