"""Random walks over the production judge: nodes, few keys, one ordered log.

Every small step (an operation begins, commits, returns; a record is drained; a message is stored,
delivered, judged; one key of a batch is written) is a step of a seeded walk. When writing stops and
everything has drained, each map must equal the fold of the log. Each rule of the judge has a test
that takes it away and must then fail: that shows that the walk can find the fault.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest

from bridge.core.dirty import DirtyKeys
from bridge.core.fingerprints import Fingerprints
from bridge.core.pending import PendingChanges
from bridge.core.replica import Replica, Verdict
from bridge.core.scanrows import ScanChunk
from bridge.model import Delta, DeltaBatch, Op, Origin
from tests.core_kit import end_scan

GRACE = 60  # steps: longer than any operation of the walk
KEYS = 3
ABSENT = 0


@dataclass
class Operation:
    key: int
    value: int
    began: int
    committed: bool = False


@dataclass
class Node:
    index: int
    sweeps: bool
    replica: Replica = field(init=False)
    kernel: dict[int, int] = field(default_factory=dict)
    running: Operation | None = None
    ring: list[DeltaBatch] = field(default_factory=list)
    queue: list[DeltaBatch] = field(default_factory=list)
    sent: int = 0
    read: int = 0
    verdict: Verdict | None = None
    landing: list[tuple[int, int]] = field(default_factory=list)
    scan: list[ScanChunk] | None = None
    scan_began: int = 0
    unscanned: list[int] = field(default_factory=list)
    wrote: set[tuple[int, int]] = field(default_factory=set)  # by its own programs

    def __post_init__(self) -> None:
        self.replica = Replica(
            Origin("c", "m", f"n{self.index}", self.index + 1),
            publishes=True,
            applies=True,
            fingerprints=Fingerprints(1) if self.sweeps else None,
        )


def row(key: int, value: int, began: int, now: int) -> DeltaBatch:
    op = Op.DELETE if value == ABSENT else Op.UPDATE
    keys = np.array([[key]], np.uint8)
    return DeltaBatch.of_entries(op, keys, _value(value), now, began=began)


def _value(value: int) -> np.ndarray:
    return np.array([value], np.uint16).view(np.uint8).reshape(1, 2)


class Walk:
    def __init__(self, seed: int, *, sweeps: bool = False) -> None:
        self.random = random.Random(seed)
        self.now = 1
        self.values = 0
        self.stale = 0  # changes published that the node's programs never made
        self.log: list[Delta] = []
        self.nodes = [Node(i, sweeps) for i in range(self.random.randint(2, 3))]
        self.quiet = False
        self.steps: list[Callable[[Node], bool]] = [
            self.begin,
            self.advance,
            self.drain,
            self.publish,
            self.judge,
            self.land,
            self.sweep,
        ]

    def run(self) -> None:
        for _ in range(self.random.randint(60, 260)):
            self.now += 1
            self.random.choice(self.steps)(self.random.choice(self.nodes))
        self.quiet = True
        for _ in range(12):
            for node in self.nodes:
                for step in (
                    self.advance,
                    self.drain,
                    self.sweep,
                    self.publish,
                    self.judge,
                    self.land,
                ):
                    while self.tick() and step(node):
                        if step == self.sweep and node.scan is None:
                            break

    def tick(self) -> bool:
        self.now += 1
        return True

    def fold(self) -> dict[int, int]:
        state: dict[int, int] = {}
        for delta in self.log:
            for key, value in changes(delta.batch):
                store(state, key, value)
        return state

    # -- the steps: each returns whether it did something --

    def begin(self, node: Node) -> bool:
        if node.running is not None or self.quiet:
            return False
        self.values += 1
        value = ABSENT if self.random.random() < 0.3 else self.values
        node.running = Operation(self.random.randrange(KEYS), value, self.now)
        return True

    def advance(self, node: Node) -> bool:
        operation = node.running
        if operation is None:
            return False
        if not operation.committed:
            existed = operation.key in node.kernel
            store(node.kernel, operation.key, operation.value)
            node.wrote.add((operation.key, operation.value))
            operation.committed = True
            if operation.value == ABSENT and not existed:
                node.running = None  # a delete that fails is no change
            return True
        if not node.sweeps:
            node.ring.append(row(operation.key, operation.value, operation.began, self.now))
        node.running = None
        return True

    def drain(self, node: Node) -> bool:
        if not node.ring:
            return False
        batch = node.ring.pop(0)
        node.replica.capture(batch)
        node.queue.append(batch)
        return True

    def publish(self, node: Node) -> bool:
        if not node.queue:
            return False
        count = self.random.randint(1, len(node.queue))
        batch = DeltaBatch.concatenate(node.queue[:count])
        del node.queue[:count]
        self.log.append(Delta(node.replica.origin, node.sent + 1, batch))
        node.sent += len(batch)
        return True

    def judge(self, node: Node) -> bool:
        if node.verdict is not None or node.read == len(self.log):
            return False
        upto = self.random.randint(node.read + 1, len(self.log))
        verdict = node.replica.judge(self.log[node.read : upto])
        node.read = upto
        if verdict.writes is not None:
            node.verdict = verdict
            node.landing = list(changes(verdict.writes))
        return True

    def land(self, node: Node) -> bool:
        if node.verdict is None:
            return False
        if node.landing:
            store(node.kernel, *node.landing.pop())
        else:
            assert node.verdict.touch is not None
            node.verdict.touch.end = self.now
            node.verdict = None
            busy = node.running.began if node.running else self.now
            oldest = min([int(b.entered[0]) for b in node.ring] + [busy, self.now])
            assert self.quiet or self.now - oldest < 10_000
            node.replica.forget(oldest - 1)
        return True

    def sweep(self, node: Node) -> bool:
        """A scan in steps, one key at a time."""
        if not node.sweeps:
            return False
        if node.scan is None:
            node.replica.begin_scan(self.now)
            node.scan_began = self.now
            node.scan, node.unscanned = [], list(range(KEYS))
            self.random.shuffle(node.unscanned)
        elif node.unscanned:
            key = node.unscanned.pop()
            if key in node.kernel:
                read = np.array([[key]], np.uint8), _value(node.kernel[key])
                scan = node.replica.scan
                node.scan.append(scan.sift(scan.chunk(*read)))
        else:
            self.end_sweep(node, node.scan)
            node.scan = None
        return True

    def end_sweep(self, node: Node, scan: list[ScanChunk]) -> None:
        found = end_scan(node.replica, scan, 2)
        began = node.scan_began
        for key in found.deleted_keys[:, 0]:
            self.found(node, row(int(key), ABSENT, began, self.now))
        for key, value in zip(found.updated_keys[:, 0], found.updated_values, strict=True):
            self.found(node, row(int(key), int(value.view(np.uint16)[0]), began, self.now))

    def found(self, node: Node, batch: DeltaBatch) -> None:
        self.stale += sum(change not in node.wrote for change in changes(batch))
        node.replica.capture(batch)
        node.queue.append(batch)


def changes(batch: DeltaBatch) -> list[tuple[int, int]]:
    values = np.ascontiguousarray(batch.values).view(np.uint16)[:, 0]
    return [
        (int(key), int(value) if op == Op.UPDATE else ABSENT)
        for op, key, value in zip(batch.ops, batch.keys[:, 0], values, strict=True)
    ]


def store(state: dict[int, int], key: int, value: int) -> None:
    if value == ABSENT:
        state.pop(key, None)
    else:
        state[key] = value


def failing_seeds(seeds: int, *, sweeps: bool = False) -> list[int]:
    failing = []
    for seed in range(seeds):
        walk = Walk(seed, sweeps=sweeps)
        walk.run()
        if walk.stale or any(node.kernel != walk.fold() for node in walk.nodes):
            failing.append(seed)
    return failing


def test_maps_equal_the_fold_with_events() -> None:
    assert failing_seeds(701) == []


def test_maps_equal_the_fold_with_sweeps() -> None:
    assert failing_seeds(401, sweeps=True) == []


def test_walk_finds_missing_pending(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(PendingChanges, "without", lambda self, batch: batch)
    assert failing_seeds(101)


def test_walk_finds_missing_dirty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DirtyKeys, "mark", lambda self, keys, doubtful: None)
    assert failing_seeds(401)


def test_walk_finds_unguarded_sweeps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fingerprints, "_defer", lambda *_: 0)
    assert failing_seeds(401, sweeps=True)
