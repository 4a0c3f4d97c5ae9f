"""What the programs of three nodes do meanwhile, and what the maps must hold afterwards.

On each node one program writes keys of its own, so that it can be told what every map must hold for
them in the end, and another one writes keys that all nodes write at the same time; of those it can
only be told that all maps must be equal.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bridge.bench.churn import MAP, OPERATIONS_MAX, Churn, Writer
from bridge.model import U64
from bridge.rig.compare import compare, read_entries
from tests.integration.churn_twin import operations

OWN, SHARED = 0, 1  # numbers of writers
OWN_KEYS = 4_096
SHARED_KEYS = 512
SHARED_FIRST = 1 << 20
DELETES_PER_1024 = 102
RUNS_PER_STEP = 4
STEP_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class Verdict:
    """``lost``: own keys of a node that some map does not hold as they were written last.

    ``drift``: entries in which two maps differ.
    """

    lost: int
    drift: int

    @property
    def good(self) -> bool:
        return not self.lost and not self.drift


class Load:
    """The writers of one node; ``start`` until ``stop``, any number of times.

    ``pace``: runs of each writer in a step, which may change between steps.
    """

    def __init__(self, churn: Churn, number: int) -> None:
        self.churn = churn
        own = Writer((number + 1) * (1 << 24), OWN_KEYS, OPERATIONS_MAX, DELETES_PER_1024)
        churn.set_writer(OWN, own)
        # Seeds of their own for the shared keys: what is drawn follows from the first key.
        shared = Writer(SHARED_FIRST, SHARED_KEYS, OPERATIONS_MAX, DELETES_PER_1024)
        churn.set_writer(SHARED, shared)
        self.pace = RUNS_PER_STEP
        self._going = threading.Event()
        self._thread: threading.Thread | None = None
        # What the first operations, ``_folded`` of them, have left of the own keys.
        self._folded = 0
        self._last = np.zeros(OWN_KEYS, np.uint64)
        self._held = np.zeros(OWN_KEYS, np.bool_)

    def start(self) -> None:
        self._going.set()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._going.clear()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    @property
    def changes(self) -> int:
        return self.churn.writer(OWN).changes + self.churn.writer(SHARED).changes

    def foretold(self) -> tuple[U64, U64]:
        """Own keys that must be in every map, sorted, and the operation that wrote each last."""
        writer = self.churn.writer(OWN)
        keys, deletes = operations(writer, writer.done, self._folded)
        # Of a row that is named several times numpy keeps the last value.
        rows = (keys - np.uint64(writer.first_key)).astype(np.intp)
        self._last[rows] = np.arange(self._folded, writer.done, dtype=np.uint64)
        self._held[rows] = ~deletes
        self._folded = writer.done
        held = np.flatnonzero(self._held)
        return held.astype(np.uint64) + np.uint64(writer.first_key), self._last[held]

    def _run(self) -> None:
        while self._going.is_set():
            self.churn.run(OWN, self.pace)
            self.churn.run(SHARED, self.pace)
            time.sleep(STEP_SECONDS)


def judge(loads: Sequence[Load]) -> Verdict:
    """Compare all maps with each other, and with what was written."""
    first = loads[0].churn.loaded.map(MAP)
    others = [load.churn.loaded.map(MAP) for load in loads[1:]]
    differences = [compare(first, other) for other in others]
    drift = sum(found.missing + found.wrong + found.extra for found in differences)
    return Verdict(lost=sum(map(sum, lost_by_writer(loads))), drift=drift)


def lost_by_writer(loads: Sequence[Load]) -> list[list[int]]:
    """For each map, how many of each writer's own keys it does not hold as written last."""
    wanted = [load.foretold() for load in loads]
    lost = []
    for holder in loads:
        lost.append([0] * len(loads))
        keys, values = read_entries(holder.churn.loaded.map(MAP))
        numbers = keys.view(np.uint64)[:, 0]
        order = np.argsort(numbers)
        numbers, sequences = numbers[order], values.view(np.uint64)[order, 2]
        for number, (expected, newest) in enumerate(wanted):
            low = np.searchsorted(numbers, (number + 1) * (1 << 24))
            high = np.searchsorted(numbers, (number + 2) * (1 << 24))
            found = dict(zip(numbers[low:high].tolist(), sequences[low:high].tolist(), strict=True))
            right = dict(zip(expected.tolist(), newest.tolist(), strict=True))
            lost[-1][number] += sum(found.get(key) != last for key, last in right.items())
            lost[-1][number] += sum(key not in right for key in found)
    return lost
