"""A node's kernel, step by step: a map, two processors, a softirq level, a ring that overflows.

The map may have room for a few keys only, and then refuse others or evict for them; a map of which
nothing is recorded is written in place, and only reading it as a whole shows what happened.
"""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np

from bridge.model import Cause, DeltaBatch, Op

ABSENT = 0
NO_ROOM = -1
CONTEXTS = ("cpu 0", "softirq on cpu 0", "cpu 1")
_INTERRUPTS = {0: 1}  # a context stands still while the other one runs


@dataclass(slots=True)
class Operation:
    key: int
    value: int
    began: int
    committed: bool = False


def change(key: int, value: int, began: int, ended: int, op: Op | None = None) -> DeltaBatch:
    op = op or (Op.DELETE if value == ABSENT else Op.UPDATE)
    raw = np.array([value], np.uint64).view(np.uint8).reshape(1, 8)
    keys = np.array([[key]], np.uint8)
    return DeltaBatch.of_entries(op, keys, raw, ended, began=began, cause=Cause.CHANGE)


def entries(batch: DeltaBatch) -> list[tuple[int, int]]:
    """Key and value of each change; a key that is gone has the value ``ABSENT``."""
    values = np.ascontiguousarray(batch.values).view(np.uint64)[:, 0]
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
    """What outlives the bridge. Records are made only while probes are attached.

    ``ahead``: this machine's clock against the walk's; it may jump forward. ``records``: writes
    are seen by probes. ``room``: keys that the map holds; ``lru``: it evicts when there is none.
    """

    ring_rows_max: int
    chance: random.Random
    ahead: int = 0
    records: bool = True
    room: int | None = None
    lru: bool = False
    map: dict[int, int] = field(default_factory=dict)
    running: list[Operation | None] = field(default_factory=lambda: [None] * len(CONTEXTS))
    ring: deque[DeltaBatch] = field(default_factory=deque)
    attached_at: int | None = None
    lost: int = 0
    writes: int = 0  # by programs
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
            self._commit(context, operation, now)
            return True
        self.running[context] = None
        recorded = change(operation.key, operation.value, operation.began, now)
        self._record(operation.began, recorded)
        return True

    def put(self, key: int, value: int) -> bool:
        """The bridge's own write, which no probe records; ``False``: there is no room."""
        if self._evicts(key, value) == NO_ROOM:
            return False
        store(self.map, key, value)
        return True

    @property
    def full(self) -> bool:
        return self.room is not None and not self.lru and len(self.map) >= self.room

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

    def _commit(self, context: int, operation: Operation, now: int) -> None:
        key, value = operation.key, operation.value
        operation.committed = True
        existed = key in self.map
        evicted = self._evicts(key, value)
        if (value == ABSENT and not existed) or evicted == NO_ROOM:
            self.running[context] = None  # what fails is no change
            return
        if evicted is not None:
            self._record(operation.began, change(evicted, ABSENT, operation.began, now, Op.EVICT))
        store(self.map, key, value)
        self.writes += 1
        self.wrote.add((key, value))
        self.last[key] = value

    def _evicts(self, key: int, value: int) -> int | None:
        """The key that had to go; ``NO_ROOM``: none may; ``None``: there is room."""
        if value == ABSENT or key in self.map or self.room is None or len(self.map) < self.room:
            return None
        if not self.lru:
            return NO_ROOM
        evicted = self.chance.choice(sorted(self.map))
        del self.map[evicted]
        return evicted

    def _record(self, began: int, record: DeltaBatch) -> None:
        if not self.records or self.attached_at is None or began < self.attached_at:
            return
        if len(self.ring) >= self.ring_rows_max:
            self.lost += 1
        else:
            self.ring.append(record)

    def _stands(self, context: int) -> bool:
        above = _INTERRUPTS.get(context)
        return above is not None and self.running[above] is not None
