"""Softirqs that interrupt a node's applying thread: the replica holds what they wrote.

The whole node is kept on the processor that receives packets, and the other node gives it much to
apply. So the XDP program writes the map in the midst of the node's own writes to the same map.
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.kernel.maps import KernelMap, MapType, create_map
from bridge.model import Role
from bridge.rig.nodes import NodeProcess
from tests.capture_kit import rows
from tests.node_kit import Rig, content, map_name, published, until
from tests.order_kit import rest
from tests.vm.features import kernel_version
from tests.vm.test_capture_nested import Traffic, settled

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

RECEIVER = 1
FOREIGN_KEY = 0x8000  # the program's keys are all below
FOREIGN_KEYS = 8191
AHEAD_MAX = 3 * FOREIGN_KEYS
DONE_MIN = 10_007


@pytest.fixture
def traffic() -> Iterator[Traffic]:
    made = Traffic()
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {0})
    yield made
    os.sched_setaffinity(0, before)
    made.close()


@pytest.mark.parametrize("rig", ["fentry", "kprobe"], indirect=True)
def test_a_replica_of_what_interrupted_the_applying_thread(rig: Rig, traffic: Traffic) -> None:
    info, name = traffic.flows.info, map_name()
    traffic.flows.pin(rig.pins / "a")
    twin = create_map(MapType.HASH, info.key_size, info.value_size, info.max_entries, name="twin")
    rig.maps.append(twin)
    twin.pin(rig.pins / "b")
    a = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    b = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    assert a.capture_mode == rig.capture
    for thread in Path(f"/proc/{a.process.pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {RECEIVER})
    foreign = Foreign(twin, a)
    before = refused()

    def enough() -> bool:
        if traffic.count(0) < DONE_MIN or not foreign.written:
            return False
        if rig.capture == "kprobe":
            return losses(a)["unpaired"] > 0
        # Before 5.12 the program is entered again, which nobody counts.
        return kernel_version() < (5, 12) or refused() > before

    try:
        traffic.send_until(enough)
    finally:
        foreign.stop()
    done = settled(lambda: traffic.count(0))
    until(lambda: a.applied("changes") >= foreign.written, "what the other node wrote")
    until(lambda: content(traffic.flows) == content(twin), "equal maps")
    rest((a, b))
    print(
        f"{rig.capture}: {done} by softirqs, {foreign.written} applied, published by a "
        f"{published(a)}, by b {published(b)}, lost {losses(a)}, refused {refused() - before}"
    )
    assert content(traffic.flows) == content(twin)
    assert published(b) == foreign.written
    if rig.capture == "fentry":
        assert published(a) == done, "missing, or echoed"
        assert sum(losses(a).values()) == 0
    else:
        assert losses(a)["unpaired"] > 0, "the alarm did not fire"
        capture = a.map_status()["capture"]
        assert isinstance(capture, dict)
        assert capture["repairs"]["finished"] > 0


class Foreign:
    """Writes the other node's map, and never much more than the node under test has applied."""

    def __init__(self, target: KernelMap, applier: NodeProcess) -> None:
        self.written = 0
        self._map = target
        self._applier = applier
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        keys, number = rows(FOREIGN_KEY, FOREIGN_KEYS, 4), 0
        while not self._stop.is_set():
            if self.written - self._applier.applied("changes") > AHEAD_MAX:
                time.sleep(0.01)
                continue
            number += 1
            self.written += self._map.update_batch(keys, rows(number, FOREIGN_KEYS, 8)).done


def losses(node: NodeProcess) -> dict[str, int]:
    capture = node.map_status()["capture"]
    assert isinstance(capture, dict)
    found = capture["losses"]
    assert isinstance(found, dict)
    return found


def refused() -> int:
    """Runs that the kernel refused to programs that were running already on that processor."""
    said = subprocess.run(
        ["bpftool", "-j", "prog", "show"], capture_output=True, text=True, check=True
    )
    return sum(program.get("recursion_misses", 0) for program in json.loads(said.stdout))
