"""A scan that is compared with the fold, by the steps that capture takes."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from bridge.core.fingerprints import Differences, Fingerprints
from bridge.core.keys import KeySet
from bridge.core.replica import Replica
from bridge.core.scanrows import ScanChunk
from bridge.model import U8


def end_scan(
    judge: Replica, sifted: list[ScanChunk], value_size: int, *, complete: bool = True
) -> Differences:
    """What the open scan found; ends it. ``complete``: what it lacks was deleted."""
    pieces = judge.scan.cut(sifted, value_size)
    found = joined(judge.scan.compare(piece, complete=complete) for piece in pieces)
    judge.scan.end()
    return found


def compare_whole(judge: Replica, keys: U8, values: U8) -> Differences:
    """The open scan has read these entries just now, and no others; ends it."""
    return end_scan(judge, [judge.scan.sift(judge.scan.chunk(keys, values))], values.shape[1])


def differences(
    table: Fingerprints, keys: U8, values: U8, *, doubtful: KeySet | None = None
) -> Differences:
    """A scan of a fold without a judge; ``doubtful``: keys that are left for the next scan.

    A collision of hashes leaves all of it for the next one, which is made at once.
    """
    while True:
        table.begin()
        sifted = [table.sift(table.chunk(keys, values))]
        seed = sifted[0].seed
        pieces = table.cut(sifted, values.shape[1])
        found = joined(table.compare(piece, doubtful=doubtful) for piece in pieces)
        table.end()
        if table.chunk(keys[:0], values[:0]).seed == seed:
            return found


def joined(found: Iterable[Differences]) -> Differences:
    """The differences of all slices."""
    parts = list(found)
    return Differences(
        np.concatenate([part.updated_keys for part in parts]),
        np.concatenate([part.updated_values for part in parts]),
        np.concatenate([part.deleted_keys for part in parts]),
        sum(part.deferred for part in parts),
    )
