"""A node's kernel, step by step: a map, two processors, a softirq level, a ring that overflows."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from bridge.model import Cause, DeltaBatch, Op

ABSENT = 0
CONTEXTS = ("cpu 0", "softirq on cpu 0", "cpu 1")
_INTERRUPTS = {0: 1}  # a context stands still while the other one runs


@dataclass(slots=True)
class Operation:
    key: int
    value: int
    began: int
    committed: bool = False


def change(key: int, value: int, began: int, ended: int, cause: Cause) -> DeltaBatch:
    op = Op.DELETE if value == ABSENT else Op.UPDATE
    raw = np.array([value], np.uint32).view(np.uint8).reshape(1, 4)
    keys = np.array([[key]], np.uint8)
    return DeltaBatch.of_entries(op, keys, raw, ended, began=began, cause=cause)


def entries(batch: DeltaBatch) -> list[tuple[int, int]]:
    """Key and value of each change; a deleted key has the value ``ABSENT``."""
    values = np.ascontiguousarray(batch.values).view(np.uint32)[:, 0]
    return [
        (int(key), int(value) if op == Op.UPDATE else ABSENT)
        for op, key, value in zip(batch.ops, batch.keys[:, 0], values, strict=True)
    ]


def store(state: dict[int, int], key: int, value: int) -> None:
    if value == ABSENT:
        state.pop(key, None)
    else:
        state[key] = value


@dataclass(slots=True)
class Kernel:
    """What outlives the bridge. Records are made only while probes are attached."""

    ring_rows_max: int
    map: dict[int, int] = field(default_factory=dict)
    running: list[Operation | None] = field(default_factory=lambda: [None] * len(CONTEXTS))
    ring: deque[DeltaBatch] = field(default_factory=deque)
    attached_at: int | None = None
    lost: int = 0
    wrote: set[tuple[int, int]] = field(default_factory=set)  # by programs, never by the bridge
    last: dict[int, int] = field(default_factory=dict)  # of these, the last one per key

    def begin(self, context: int, key: int, value: int, now: int) -> bool:
        if self.running[context] is not None or self._stands(context):
            return False
        self.running[context] = Operation(key, value, now)
        return True

    def step(self, context: int, now: int) -> bool:
        """Commit, then return; an operation is recorded when it returns."""
        operation = self.running[context]
        if operation is None or self._stands(context):
            return False
        if not operation.committed:
            existed = operation.key in self.map
            store(self.map, operation.key, operation.value)
            operation.committed = True
            if operation.value == ABSENT and not existed:
                self.running[context] = None  # a delete that fails is no change
            else:
                self.wrote.add((operation.key, operation.value))
                self.last[operation.key] = operation.value
            return True
        self.running[context] = None
        if self.attached_at is not None and operation.began >= self.attached_at:
            if len(self.ring) >= self.ring_rows_max:
                self.lost += 1
            else:
                self.ring.append(
                    change(operation.key, operation.value, operation.began, now, Cause.CHANGE)
                )
        return True

    def oldest(self, now: int) -> int:
        """Begin of the oldest operation that is still to be recorded."""
        busy = [o.began for o in self.running if o is not None]
        return min([now, *busy, *(int(b.entered[0]) for b in self.ring)])

    def attach(self, now: int) -> None:
        self.ring.clear()
        self.attached_at = now

    def reboot(self) -> None:
        self.map.clear()
        self.running = [None] * len(CONTEXTS)

    def _stands(self, context: int) -> bool:
        above = _INTERRUPTS.get(context)
        return above is not None and self.running[above] is not None
