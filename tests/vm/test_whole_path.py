"""Whole nodes on a kernel with probes: what any writer does to one map, another map holds."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from bridge.bench.churn import Writer
from bridge.kernel.errors import KeyExistsError
from bridge.kernel.maps import KernelMap, UpdateFlag, create_map
from bridge.model import Role
from bridge.rig.nodes import MapEntry, NodeProcess
from tests.integration.churn_twin import loaded_churn
from tests.integration.kernel_support import rows_of
from tests.node_kit import Rig, content, fill, map_name, published, until
from tests.vm.kernels import CHECKOUT

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

IN_NAMESPACE = "MAPBRIDGE_VM_PID_NAMESPACE"


@pytest.mark.parametrize("rig", ["fentry", "kprobe"], indirect=True)
def test_every_writer_arrives_once(rig: Rig, tmp_path: Path) -> None:
    """Programs, single and batch system calls; refused operations do not count as changes."""
    with loaded_churn(tmp_path / "cache") as churn:
        a = churn.loaded.map("churn")
        b = create_map(a.info.type, 16, 24, a.info.max_entries, name="replica")
        b.pin(rig.pins / "b")
        rig.maps.append(b)
        name = map_name()
        source = MapEntry(name, churn.loaded.map_pin("churn"), Role.PUBLISH)
        node = rig.node("a", source)
        rig.node("b", rig.entry(name, "b", Role.APPLY))
        assert node.capture_mode == rig.capture
        churn.set_writer(0, Writer(first_key=1, keys=1009, operations=31, deletes=301))
        churn.run(0, 101)
        changes = by_system_calls(a)
        churn.run(0, 103)
        changes += churn.writer(0).changes
        until(lambda: published(node) >= changes, "all changes")
        until(lambda: content(a) == content(b), "equal maps")
        settled(node)
        assert published(node) == changes
        assert content(a) == content(b)


def by_system_calls(target: KernelMap) -> int:
    """Write in every way that user space has; the number of changes made."""
    far = 1 << 40  # keys that the program does not use
    fill(target, range(far, far + 1013), 1)
    fill(target, range(far + 500, far + 1500), 2)
    changes = 1013 + 1000
    for row in rows_of(range(far, far + 211), 16):
        target.update(row.tobytes(), bytes([3]) * 24)
        changes += 1
    for row in rows_of(range(far, far + 7), 16):
        with pytest.raises(KeyExistsError):
            target.update(row.tobytes(), bytes([4]) * 24, UpdateFlag.NOEXIST)
    for row in rows_of(range(far + 10, far + 63), 16):
        assert target.delete(row.tobytes())
        assert not target.delete(row.tobytes())
        changes += 1
    for row in rows_of(range(far + 100, far + 117), 16):
        assert target.lookup_and_delete(row.tobytes()) is not None
        changes += 1
    outcome = target.delete_batch(rows_of(range(far + 1000, far + 1103), 16))
    assert (outcome.done, outcome.errno) == (103, 0)
    keys, _ = target.lookup_and_delete_batch(131)
    assert len(keys) >= 131
    return changes + 103 + len(keys)


@pytest.mark.parametrize("rig", ["fentry", "kprobe"], indirect=True)
def test_both_ways_without_echo(rig: Rig, request: pytest.FixtureRequest) -> None:
    """In a pid namespace: there the kernel's thread ids are not those that a process sees."""
    if not os.environ.get(IN_NAMESPACE):
        in_pid_namespace(f"{__file__}::{request.node.name}")
        return
    assert os.getpid() == 1
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node_a = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    node_b = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    fill(a, range(211), 1)
    fill(b, range(1000, 1307), 2)
    for number in range(2000, 2053):
        a.update(rows_of(range(number, number + 1), 16)[0].tobytes(), bytes([5]) * 24)
    assert a.delete_batch(np.ascontiguousarray(rows_of(range(101), 16))).done == 101
    until(lambda: content(a) == content(b) and len(content(a)) == 470, "both")
    made = (211 + 53 + 101, 307)
    until(lambda: (published(node_a), published(node_b)) == made, "counts")
    settled(node_a, node_b)
    assert (published(node_a), published(node_b)) == made
    assert content(a) == content(b)


def in_pid_namespace(test: str) -> None:
    """Run one test once more, in a pid namespace of its own."""
    unshare = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    options = ["-p", "no:cacheprovider", "-m", "vm", "--timeout=500"]
    ended = subprocess.run(
        [*unshare, sys.executable, "-m", "pytest", *options, test],
        capture_output=True,
        text=True,
        timeout=550,
        check=False,
        cwd=CHECKOUT,
        env=os.environ | {IN_NAMESPACE: "1"},
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "1 passed" in ended.stdout


def settled(*nodes: NodeProcess) -> None:
    """Wait for statuses that were written a while after what happened last."""
    later = time.time() + 1.0
    until(lambda: min(node.status_written for node in nodes) > later, "later statuses")
