"""The writer thread with real maps: trouble is told once, refused writes come later."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from bridge.apply import applier as module
from bridge.apply.applier import Applier
from bridge.apply.inbox import Arrival, Inbox
from bridge.apply.target import ApplyTarget
from bridge.apply.writer import MapWriter
from bridge.core.fingerprints import Fingerprints
from bridge.core.replica import Replica
from bridge.errors import BridgeError
from bridge.kernel.errors import MapClosedError
from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap, MapType, create_map
from bridge.model import Delta, DeltaBatch, Op, Origin
from tests.core_kit import compare_whole
from tests.integration.kernel_support import needs, rows_of, unique_name
from tests.node_kit import content, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)
SIZE = 8


class Bench:
    """One map with a writer thread; ``send`` plays the stream."""

    def __init__(self, *, entries: int = 64) -> None:
        self.loop = asyncio.new_event_loop()
        self.map: KernelMap = create_map(
            MapType.HASH, SIZE, SIZE, entries, name=unique_name("applier")
        )
        self.replica = Replica(
            Origin("c", "m", "own", 1), publishes=True, applies=True, fingerprints=Fingerprints(8)
        )
        self.lock = threading.Lock()
        self.told: list[tuple[str, str]] = []
        self.inbox = Inbox(1 << 20, self.loop)
        self.applier = Applier(self.inbox, report=self.report)
        self.target = ApplyTarget("m", self.replica, MapWriter(self.map), self.lock)
        self.applier.add(self.target)
        self.sequence = 0
        self.rows = 0

    def report(self, name: str, error: BridgeError) -> None:
        self.told.append((name, str(error)))

    def send(self, op: Op, numbers: range, value: int = 0, *, size: int = SIZE) -> None:
        keys = rows_of(numbers, SIZE)
        now = time.monotonic_ns()
        batch = DeltaBatch.of_entries(op, keys, np.full((len(keys), size), value, np.uint8), now)
        self.sequence += 1
        delta = Delta(Origin("c", "m", "other", 2), self.rows + 1, batch)
        self.rows += len(keys) if size == SIZE else 0
        self.loop.run_until_complete(self.inbox.put(Arrival(self.sequence, delta)))

    def settle(self) -> None:
        until(lambda: self.target.counters.sequence == self.sequence, "the last message")

    def close(self) -> None:
        assert self.applier.stop(10)
        self.map.close()
        self.loop.close()


@pytest.fixture
def bench() -> Iterator[Bench]:
    made = Bench()
    made.applier.start()
    yield made
    made.close()


def test_a_sender_with_other_sizes_is_named_once_and_the_rest_goes_on(bench: Bench) -> None:
    for _ in range(3):
        bench.send(Op.UPDATE, range(5), 1, size=4)
    bench.send(Op.UPDATE, range(7), 1)
    bench.settle()
    assert bench.target.counters.rejected == 3
    assert [name for name, _ in bench.told] == ["m"]
    assert "node other" in bench.told[0][1]
    assert len(content(bench.map)) == 7


def test_what_was_refused_is_written_when_there_is_room(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    bench.send(Op.UPDATE, range(64), 1)
    bench.send(Op.UPDATE, range(100, 117), 2)
    bench.send(Op.UPDATE, range(110, 117), 3)
    bench.send(Op.DELETE, range(100, 103))
    bench.settle()
    assert bench.target.counters.unwritten == 14
    assert len(bench.told) == 1
    assert "full" in bench.told[0][1]
    with bench.lock:  # a sweep now would find the map without these keys
        bench.replica.begin_scan(time.monotonic_ns())
        keys, values = next(iter(bench.map.scan()))
        found = compare_whole(bench.replica, keys, values)
    assert (len(found.updated_keys), len(found.deleted_keys)) == (0, 0)

    assert bench.map.delete_batch(rows_of(range(20), SIZE)).done == 20  # by a local program
    until(lambda: len(content(bench.map)) == 44 + 14, "what was refused")
    until(lambda: bench.target.counters.unwritten == 0, "the count")
    held = content(bench.map)
    newest = [held[key.tobytes()] for key in rows_of(range(110, 117), SIZE)]
    assert newest == [bytes([3] * SIZE)] * 7


def test_a_fault_in_the_thread_surfaces(bench: Bench) -> None:
    bench.map.close()
    bench.send(Op.UPDATE, range(7), 1)
    until(lambda: bench.applier.failure is not None, "the failure")
    assert isinstance(bench.applier.failure, MapClosedError)


def test_a_failing_start_is_raised() -> None:
    def refuse() -> None:
        raise BridgeError("no thread id")

    loop = asyncio.new_event_loop()
    applier = Applier(Inbox(1, loop), report=lambda name, error: None, on_start=refuse)
    with pytest.raises(BridgeError, match="no thread id"):
        applier.start()
    loop.close()
