"""The writer of a dry run: counts what would be written, and writes nothing."""

from __future__ import annotations

import numpy as np

from bridge.apply.writer import MapWriter, Written
from bridge.model import DeltaBatch, Op


class DryWriter(MapWriter):
    """Refuses what the real one refuses. Whether a deleted key is there is not looked up."""

    def write(self, batch: DeltaBatch) -> Written:
        updated = int(np.count_nonzero(batch.ops == Op.UPDATE))
        return Written(updated=updated, deleted=len(batch) - updated)
