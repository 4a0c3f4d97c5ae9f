"""The fold of messages against a plain dictionary."""

from __future__ import annotations

import numpy as np

from bridge.bus.protocol import Received
from bridge.feed.fold import Fold
from bridge.model import Delta, DeltaBatch, Op, Origin


def test_the_last_change_of_each_key_counts() -> None:
    random = np.random.default_rng(1009)
    fold, expected, sequence = Fold(), {}, 0
    for message in range(101):
        rows = int(random.integers(1, 61))
        ops = random.choice([1, 1, 1, 2, 3], rows).astype(np.uint8)
        keys = random.integers(0, 37, (rows, 1)).astype(np.uint8)
        values = random.integers(0, 256, (rows, 2), np.uint8)
        zero = np.zeros(rows, np.uint64)
        batch = DeltaBatch(ops, keys, values, zero, zero, np.zeros(rows, np.uint32))
        sequence += 3
        origin = Origin("c", "m", f"n{message % 3}", 7)
        fold.add(Received(sequence, 0, Delta(origin, 1, batch, clock_offset=5)))
        for op, key, value in zip(ops, keys, values, strict=True):
            if op == Op.UPDATE:
                expected[key.tobytes()] = (value.tobytes(), origin.node, sequence)
            elif op == Op.DELETE:
                expected.pop(key.tobytes(), None)
        found = {
            key: (entry.value, entry.written.node, entry.written.sequence)
            for key, entry in fold.entries.items()
        }
        assert found == expected
    assert fold.evictions > 100
