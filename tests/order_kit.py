"""Two processors that write the same few keys at the same time, and a replica that must agree."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

import pytest

from bridge.bench.churn import LOSSES, MAP, RING, Writer
from bridge.kernel.maps import create_map
from bridge.kernel.objects import default_cache
from bridge.model import Role
from bridge.rig.nodes import MapEntry, NodeProcess
from tests.integration.churn_twin import TwinChurn, loaded_churn
from tests.node_kit import Rig, content, map_name, published, until

KEYS = 16
DELETES = 211  # of 1024 operations
QUIET_SECONDS = 0.6  # of status time, after which nothing is on its way any more


class Contention:
    """A source whose program two processors run, and a node that follows it.

    Both nodes replicate: what the source's own node is in doubt about it writes again, as the
    stream has it, and so source and replica agree.
    """

    def __init__(self, rig: Rig, churn: TwinChurn, *, emit: bool) -> None:
        self.churn = churn
        self.source = churn.loaded.map(MAP)
        info = self.source.info
        self.replica = create_map(
            info.type, info.key_size, info.value_size, info.max_entries, name="replica"
        )
        rig.maps.append(self.replica)
        self.replica.pin(rig.pins / "b")
        loaded, name = churn.loaded, map_name()
        emitted = (loaded.map_pin(RING), loaded.map_pin(LOSSES)) if emit else None
        self.a = rig.node("a", MapEntry(name, loaded.map_pin(MAP), Role.REPLICATE, emitted))
        self.b = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
        for number in (0, 1):
            churn.set_writer(number, Writer(first_key=1, keys=KEYS, operations=1, deletes=DELETES))

    def repeat(self, rounds: int) -> None:
        """``rounds`` operations by two processors; then both maps must hold the same."""
        self._write(rounds)
        changes = sum(self.churn.writer(number).changes for number in (0, 1))
        until(lambda: published(self.a) + self.lost() >= changes, "all changes")
        until(lambda: content(self.source) == content(self.replica), "equal maps")
        rest((self.a, self.b))
        assert content(self.source) == content(self.replica), self._explain()

    def _write(self, rounds: int) -> None:
        ready, errors = threading.Barrier(2), list[BaseException]()
        cpus = sorted(os.sched_getaffinity(0))[:2]
        assert len(cpus) == 2, "two processors are needed"

        def run(number: int) -> None:
            try:
                os.sched_setaffinity(0, {cpus[number]})
                ready.wait()
                self.churn.run(number, (rounds + number) // 2)
            except BaseException as error:
                errors.append(error)
                raise

        threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors

    def lost(self) -> int:
        """Changes that the source's node did not see."""
        capture = self.a.map_status()["capture"]
        assert isinstance(capture, dict)
        return sum(capture["losses"].values())

    def _explain(self) -> str:
        mine, other = content(self.source), content(self.replica)
        keys = sorted(key for key in mine.keys() | other.keys() if mine.get(key) != other.get(key))
        lines = [f"{len(keys)} keys differ after it had been equal"]
        lines += [
            f"key {key.hex()}: source {_hex(mine, key)}, replica {_hex(other, key)}" for key in keys
        ]
        return "; ".join([*lines, f"a: {self.a.map_status()}", f"b: {self.b.map_status()}"])


def _hex(entries: dict[bytes, bytes], key: bytes) -> str:
    return entries[key].hex() if key in entries else "none"


def rest(nodes: Sequence[NodeProcess]) -> None:
    """Wait for statuses that were written a while after what happened last."""
    later = time.time() + QUIET_SECONDS
    until(lambda: min(node.status_written for node in nodes) > later, "later statuses")


def check_order(
    rig: Rig, request: pytest.FixtureRequest, *, repetitions: int, rounds: int, emit: bool = False
) -> None:
    """The whole test; the command line may ask for more repetitions and rounds."""
    repetitions = request.config.getoption("--order-repetitions") or repetitions
    rounds = request.config.getoption("--order-rounds") or rounds
    defines = ["EMIT"] if emit else []
    with loaded_churn(default_cache(), *defines) as churn:
        contention = Contention(rig, churn, emit=emit)
        began = time.monotonic()
        for number in range(repetitions):
            contention.repeat(rounds)
            if number in (0, repetitions - 1):
                print(f"repetition {number + 1}, {time.monotonic() - began:.1f} s")
        print(
            f"{rig.capture}: {repetitions} times {rounds:,} rounds on {KEYS} keys, equal each time"
        )
