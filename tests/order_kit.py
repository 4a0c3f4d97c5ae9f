"""Two processors that write the same few keys at the same time, and a replica that must agree."""

from __future__ import annotations

import enum
import os
import struct
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from bridge.bench.churn import FRAME_BYTES
from bridge.kernel.maps import KernelMap, create_map
from bridge.kernel.objects import LoadedObject, compile_object, default_cache, load_object
from bridge.model import U8, Role
from bridge.resources import bpf_directory
from bridge.rig.nodes import MapEntry, NodeProcess
from tests.node_kit import Rig, content, map_name, published, until

SOURCE = Path(__file__).parent / "integration" / "programs" / "contend.bpf.c"
MAP, RING, LOSSES = "contend", "contend_ring", "contend_lost"
KEYS, NUMBERS = 16, 16_384  # as in the program
ROWS = 1021  # of one turn of a hand, where hands take turns
KEYS_SHOWN = 8
READY_SECONDS_MAX = 30.0
QUIET_SECONDS = 0.6  # of status time, after which nothing is on its way any more
_WRITER = struct.Struct("=QQQ")  # struct contend_writer


class Hand(enum.StrEnum):
    """How one of the two writes."""

    PROGRAM = "program"
    BATCH = "batch"  # by bpf(2), whose record is made long after its first change


Hands = tuple[Hand, Hand]


class Contention:
    """A source whose program two processors run, and a node that follows it.

    Both nodes replicate: what the source's own node is in doubt about it writes again, as the
    stream has it, and so source and replica agree.
    """

    def __init__(self, rig: Rig, loaded: LoadedObject, *, emit: bool) -> None:
        self._written = 0  # changes
        self._window = 0  # which sixteen keys
        self.source = loaded.map(MAP)
        self._writers: KernelMap = loaded.map("contend_writers")
        self._program = loaded.program("contend_run")
        info = self.source.info
        self.replica = create_map(
            info.type, info.key_size, info.value_size, info.max_entries, name="replica"
        )
        rig.maps.append(self.replica)
        self.replica.pin(rig.pins / "b")
        name = map_name()
        emitted = (loaded.map_pin(RING), loaded.map_pin(LOSSES)) if emit else None
        self.a = rig.node("a", MapEntry(name, loaded.map_pin(MAP), Role.REPLICATE, emitted))
        self.b = rig.node("b", rig.entry(name, "b", Role.REPLICATE))

    def repeat(self, hands: Hands, rounds: int) -> None:
        """``rounds`` operations by two processors; then both maps must hold the same."""
        before = self._counts()
        if Hand.BATCH not in hands:
            _together([partial(self._run, n, (rounds + n) // 2) for n in (0, 1)])
            assert self._counts()[0] - before[0] == rounds
        else:
            for _ in range(-(-rounds // (2 * ROWS))):
                self._window += 1
                _together([self._turn(n, hand) for n, hand in enumerate(hands)])
        self._written += self._counts()[1] - before[1]
        until(lambda: published(self.a) + self.lost() >= self._written, "all changes")
        try:
            until(lambda: content(self.source) == content(self.replica), "equal maps")
        except AssertionError as error:
            raise AssertionError(self._explain()) from error
        rest((self.a, self.b))
        assert content(self.source) == content(self.replica), self._explain()

    def _counts(self) -> tuple[int, int]:
        """Operations that the program did, and changes that came of them."""
        found = [
            _WRITER.unpack(self._writers.lookup(n.to_bytes(4, "little")) or b"") for n in (0, 1)
        ]
        return sum(one[0] for one in found), sum(one[1] for one in found)

    def _turn(self, number: int, hand: Hand) -> Callable[[], None]:
        """The next sixteen keys by one hand."""
        first = self._window * KEYS % NUMBERS
        if hand is Hand.PROGRAM:
            at = number.to_bytes(4, "little")
            done, changes, _ = _WRITER.unpack(self._writers.lookup(at) or b"")
            self._writers.update(at, _WRITER.pack(done, changes, first + 1))
            return partial(self._run, number, ROWS)
        random = np.random.default_rng(self._window * 2 + number)
        keys = np.uint64(first) + random.integers(0, KEYS, ROWS, np.uint64)
        values = np.zeros((ROWS, 2), np.uint64)
        values[:, 0], values[:, 1] = 2 + number, self._written + np.arange(ROWS, dtype=np.uint64)
        self._written += ROWS
        columns = (one.view(np.uint8).reshape(ROWS, -1) for one in (keys, values))
        return partial(self._batch, *columns)

    def _run(self, number: int, runs: int) -> None:
        packet = number.to_bytes(4, "little").ljust(FRAME_BYTES, b"\0")
        assert self._program.test_run(packet, repeat=runs).retval == 0, "refused by the map"

    def _batch(self, keys: U8, values: U8) -> None:
        assert self.source.update_batch(keys, values).done == len(keys)

    def lost(self) -> int:
        """Changes that the source's node did not see."""
        capture = self.a.map_status()["capture"]
        assert isinstance(capture, dict)
        return sum(capture["losses"].values())

    def _explain(self) -> str:
        mine, other = content(self.source), content(self.replica)
        keys = sorted(key for key in mine.keys() | other.keys() if mine.get(key) != other.get(key))
        lines = [f"{len(keys)} keys differ"]
        lines += [
            f"key {key.hex()}: source {_hex(mine, key)}, replica {_hex(other, key)}"
            for key in keys[:KEYS_SHOWN]
        ]
        return "; ".join([*lines, f"a: {self.a.map_status()}", f"b: {self.b.map_status()}"])


def _hex(entries: dict[bytes, bytes], key: bytes) -> str:
    return entries[key].hex() if key in entries else "none"


def rest(nodes: Sequence[NodeProcess]) -> None:
    """Wait for statuses that were written a while after what happened last."""
    later = time.time() + QUIET_SECONDS
    until(lambda: min(node.status_written for node in nodes) > later, "later statuses")


def _together(parts: Sequence[Callable[[], None]]) -> None:
    """Each on a processor of its own, at the same time."""
    ready = threading.Barrier(len(parts), timeout=READY_SECONDS_MAX)
    cpus = sorted(os.sched_getaffinity(0))
    assert len(cpus) >= len(parts), "two processors are needed"

    def run(cpu: int, part: Callable[[], None]) -> None:
        os.sched_setaffinity(0, {cpu})
        ready.wait()
        part()

    with ThreadPoolExecutor(len(parts)) as pool:
        list(pool.map(run, cpus, parts))


def check_order(
    rig: Rig,
    request: pytest.FixtureRequest,
    pairs: Sequence[Hands],
    *,
    repetitions: int,
    rounds: int,
    emit: bool = False,
) -> None:
    """The whole test; the command line may ask for more repetitions and rounds."""
    repetitions = request.config.getoption("--order-repetitions") or repetitions
    rounds = request.config.getoption("--order-rounds") or rounds
    compiled = compile_object(
        SOURCE,
        include=[bpf_directory()],
        defines=["EMIT"] if emit else [],
        cache=default_cache(),
    )
    with load_object(compiled, rig.pins / "contend") as loaded:
        contention = Contention(rig, loaded, emit=emit)
        mode = "emit" if emit else contention.a.capture_mode
        for hands in pairs:
            began = time.monotonic()
            for _ in range(repetitions):
                contention.repeat(hands, rounds)
            who, seconds = " and ".join(hands), time.monotonic() - began
            lost = contention.lost()
            print(f"{mode}, {who}: {repetitions} x {rounds:,} rounds, {seconds:.0f} s, {lost} lost")
