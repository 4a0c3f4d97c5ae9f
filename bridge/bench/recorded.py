"""Changes that a program made, as a file: the same ones for every transport.

``bpf/examples/churn.bpf.c`` is run once, and what it sends is taken from its ring. Since each of
its operations follows from the number of those before, a later run does the same again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridge.bench.churn import LOSSES, MAP, OPERATIONS_MAX, RING, Writer, loaded_churn
from bridge.bench.generator import DELETES_PER_1024, KEYS, RUNS_PER_CALL
from bridge.capture.emit import EmitSource
from bridge.kernel.objects import default_cache
from bridge.model import U8, DeltaBatch, MapSelector, Op
from bridge.rig.compare import Comparison, Scannable, compare_entries, read_entries

# One record of the file. Twins: RECORD in benchmarks/peer.py, recordBytes in benchmarks/go.
RECORD = np.dtype([("op", "<u8"), ("key", np.uint8, (16,)), ("value", np.uint8, (24,))])
Records = np.ndarray[tuple[int], np.dtype[np.void]]


@dataclass(frozen=True, slots=True)
class Recorded:
    """``changes``: of one map that was empty before the first of them."""

    changes: Records
    path: Path

    def compare(self, count: int, replica: Scannable) -> Comparison:
        """With what a map must hold after ``count`` changes, the file begun anew at its end.

        Of the last ``len(changes)`` of them the newest of each key decides; earlier ones have all
        been overwritten, since each record of the file is among those.
        """
        size = len(self.changes)
        rows = self.changes[np.arange(max(0, count - size), count) % size]
        keys = np.ascontiguousarray(rows["key"])
        units = keys.view(np.dtype((np.void, keys.shape[1]))).reshape(len(keys))
        _, newest = np.unique(units[::-1], return_index=True)
        left = rows[len(rows) - 1 - newest]
        left = left[left["op"] == Op.UPDATE]
        return compare_entries(left["key"], left["value"], *read_entries(replica))


def record(count: int, pins: Path, path: Path) -> Recorded:
    """Have the program make about ``count`` changes and write them to ``path``."""
    batches: list[DeltaBatch] = []
    with loaded_churn(default_cache(), pins, ["EMIT"]) as churn:
        churn.set_writer(0, Writer(1, KEYS, OPERATIONS_MAX, DELETES_PER_1024))
        selectors = (MapSelector(pin=str(churn.loaded.map_pin(name))) for name in (RING, LOSSES))
        source = EmitSource(churn.loaded.map(MAP), *selectors)
        for _ in range(max(1, count // (OPERATIONS_MAX * RUNS_PER_CALL))):
            churn.run(0, RUNS_PER_CALL)
            while found := source.drain():
                batches += found
        source.close()
    changes = np.concatenate([_records(batch) for batch in batches])
    changes.tofile(path)
    return Recorded(changes, path)


def _records(batch: DeltaBatch) -> Records:
    records = np.zeros(len(batch), RECORD)
    keys: U8 = batch.keys
    records["op"], records["key"], records["value"] = batch.ops, keys, batch.values
    return records
