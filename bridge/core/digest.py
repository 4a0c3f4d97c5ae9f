"""A number that is equal for equal sets of rows, in whatever order they come.

The sum of a hash of each row, modulo 2**64. The hash is the same on all nodes, so it guards against
damage and mistakes, not against somebody who wants two sets to look equal.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from bridge.core.keys import hash_rows
from bridge.model import DeltaBatch

_KEY_SEED: Final = 0x6D61_7062_7269_6467
_VALUE_SEED: Final = 0x736E_6170_7368_6F74


def rows_digest(batch: DeltaBatch) -> int:
    """The digest of the rows of a batch; add those of several modulo 2**64."""
    values = hash_rows(batch.values, _VALUE_SEED)
    values *= np.uint64(0x9E37_79B9_7F4A_7C15)
    values ^= hash_rows(batch.keys, _KEY_SEED)
    values += batch.ops
    return int(values.sum(dtype=np.uint64))
