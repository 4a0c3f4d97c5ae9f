"""The gate before the judge: what counts while a map joins, and a snapshot that sweeps keys out."""

from __future__ import annotations

import threading

import numpy as np

from bridge.apply.applier import Applier
from bridge.apply.gate import ApplyGate
from bridge.apply.inbox import Arrival, Inbox
from bridge.apply.loading import Load
from bridge.apply.target import ApplyTarget
from bridge.apply.writer import MapWriter
from bridge.core.guard import GuardLimits
from bridge.core.replica import Replica
from bridge.model import U8, Delta, DeltaBatch, MapInfo, Op, Origin

OWN, OTHER = Origin("c", "m", "own", 3), Origin("c", "m", "other", 1)
POSITION = 7


def keys(numbers: range) -> U8:
    return np.arange(numbers.start, numbers.stop, dtype="<u8").view(np.uint8).reshape(-1, 8)


def batch(op: Op, numbers: range) -> DeltaBatch:
    return DeltaBatch.of_entries(op, keys(numbers), np.zeros((len(numbers), 4), np.uint8), 1)


class Outcome:
    errno = 0

    def __init__(self, done: int) -> None:
        self.done = done


class Table:
    """A map of 8-byte keys in memory, with the writer's seam."""

    def __init__(self, numbers: range) -> None:
        self.info = MapInfo(1, "m", 1, 8, 4, 4_099)
        self.held = {key.tobytes(): bytes(4) for key in keys(numbers)}

    def lookup(self, key: bytes) -> bytes | None:
        return self.held.get(key)

    def update_batch(self, keys: U8, values: U8, flags: int = 0) -> Outcome:
        del flags
        self.held |= {k.tobytes(): v.tobytes() for k, v in zip(keys, values, strict=True)}
        return Outcome(len(keys))

    def delete_batch(self, keys: U8) -> Outcome:
        for key in keys:
            self.held.pop(key.tobytes(), None)
        return Outcome(len(keys))

    def keys_now(self) -> U8:
        return np.frombuffer(b"".join(self.held), np.uint8).reshape(-1, 8)


class Bench:
    """A target of the applier over a ``Table``; its thread is not started."""

    def __init__(self, entries: int) -> None:
        self.table = Table(range(entries))
        self.told: list[str] = []
        self.gate = ApplyGate(
            OWN,
            GuardLimits(deletes=0.5),
            count=lambda: len(self.table.held),
            on_halt=self.told.append,
        )
        self.target = ApplyTarget(
            "m",
            Replica(OWN, publishes=False, applies=True),
            MapWriter(self.table),
            threading.Lock(),
            gate=self.gate,
        )
        self.applier = Applier(Inbox(1 << 20, None), report=lambda *_: None)  # type: ignore[arg-type]
        self.applier.add(self.target)

    def load(self, *, guarded: bool) -> tuple[Load, list[Arrival]]:
        """A snapshot that holds the first 101 keys."""
        load = Load(POSITION, 0, 4, self.table.keys_now, lambda: None, guarded)
        end = DeltaBatch.empty(8, 4)
        held = batch(Op.UPDATE, range(101))
        rows = [(1, held), (102, end)]
        return load, [Arrival(POSITION, Delta(OTHER, first, b), load) for first, b in rows]


def test_the_first_load_of_a_map_is_no_mass_change() -> None:
    bench = Bench(1009)
    load, parts = bench.load(guarded=False)
    bench.applier._apply("m", parts)
    assert load.finished
    assert len(bench.table.held) == 101
    assert not bench.gate.halted


def test_keys_that_a_snapshot_sweeps_out_of_a_known_map_wait_for_a_person() -> None:
    bench = Bench(1009)
    load, parts = bench.load(guarded=True)
    bench.applier._apply("m", parts)
    assert "908 of 1009 entries deleted" in bench.gate.halted
    assert bench.told == [bench.gate.halted]
    assert (load.finished, load.parts, len(bench.table.held)) == (False, 1, 1009)

    behind = Arrival(8, Delta(OTHER, 1, batch(Op.UPDATE, range(2000, 2003))))
    bench.applier._apply("m", [behind])
    assert bench.gate.held == 2, "the end of the snapshot, and what follows it"
    bench.gate.resume(until=8)
    bench.applier._work(None)
    assert load.finished
    assert len(bench.table.held) == 101 + 3
    assert (bench.target.counters.sequence, bench.target.counters.swept_out) == (8, 908)
    assert not bench.gate.halted


def test_a_few_keys_swept_out_pass() -> None:
    bench = Bench(149)
    load, parts = bench.load(guarded=True)
    bench.applier._apply("m", parts)
    assert load.finished
    assert len(bench.table.held) == 101


def test_the_parts_of_a_snapshot_are_no_changes_but_wait_behind_a_halt() -> None:
    bench = Bench(0)
    bench.gate = ApplyGate(
        OWN, GuardLimits(changes=0.1), count=lambda: 1009, on_halt=bench.told.append
    )
    bench.target.gate = bench.gate
    bench.gate.armed = True
    load, parts = bench.load(guarded=True)
    bench.applier._apply("m", parts)
    assert load.finished
    changes = Arrival(8, Delta(OTHER, 1, batch(Op.UPDATE, range(499))))
    bench.applier._apply("m", [changes])
    assert bench.gate.halted
    load, parts = bench.load(guarded=True)
    bench.applier._apply("m", parts)
    assert (load.begun, bench.gate.held) == (False, 3)
