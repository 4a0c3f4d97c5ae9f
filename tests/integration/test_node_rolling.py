"""Nodes whose programs differ: changes are mapped both ways, or parked; values of one host."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time

import numpy as np
import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import open_bus
from bridge.bus.schemas import SchemaStore
from bridge.feed.schema import MapSchema, encode_schema
from bridge.kernel.clock import clock_offset_ns
from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap
from bridge.layout.columns import Column, Decoder
from bridge.layout.declared import read_declared
from bridge.layout.fingerprint import fingerprint
from bridge.layout.types import Layout
from bridge.model import U8, Delta, DeltaBatch, Op, Origin, Role
from bridge.rig.nodes import CLUSTER, MapEntry, NodeProcess
from tests.integration.kernel_support import needs, rows_of
from tests.node_kit import KEY, Rig, content, mapbridge, published, until

pytestmark = [
    needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN, Capability.CAP_SYS_ADMIN),
    pytest.mark.own_server,
]

ROWS = 13
DAY = 86_400 * 10**9
OLD = "struct k { __u64 id; __u64 zone; }; struct v { __u32 a; __u32 b; };"
NEW = OLD.replace("__u32 a;", "__u32 a; __u64 between;")
NARROW = OLD.replace("__u32 a;", "__u16 a;")
WITH_TIME = "struct k { __u64 id; __u64 zone; }; struct v { __u64 born; __u32 index; __u32 n; };"


def layout(types: str) -> Layout:
    return read_declared(types, "struct k", "struct v")


def entry(rig: Rig, pin: str, types: str, more: str = "") -> MapEntry:
    text = f'{more}\n[maps.layout]\ntypes = "{types}"\nkey = "struct k"\nvalue = "struct v"\n'
    return MapEntry("flows", rig.pins / pin, Role.REPLICATE, more=(text,))


def write(target: KernelMap, types: str, numbers: range, **fields: int) -> None:
    rows = np.zeros((len(numbers), target.info.value_size), np.uint8)
    view = Decoder(layout(types).value, "value").view(rows)
    for name, value in fields.items():
        view[name] = value
    outcome = target.update_batch(rows_of(numbers, KEY), rows)
    assert outcome.done == len(numbers)


def columns(source: KernelMap, types: str) -> dict[str, Column]:
    held = content(source)
    rows = np.frombuffer(b"".join(held[key] for key in sorted(held)), np.uint8)
    return Decoder(layout(types).value, "value").columns(rows.reshape(len(held), -1))


def has(source: KernelMap, types: str, count: int, **fields: int) -> bool:
    if len(content(source)) != count:
        return False
    found = columns(source, types)
    return all(found[name].tolist() == [value] * count for name, value in fields.items())


def test_a_value_that_grew_in_its_middle_goes_both_ways(rig: Rig) -> None:
    old, new = rig.map("old", value_size=8), rig.map("new", value_size=24)
    a = rig.node("a", entry(rig, "old", OLD))
    b = rig.node("b", entry(rig, "new", NEW))
    write(old, OLD, range(ROWS), a=7, b=9)
    until(lambda: has(new, NEW, ROWS, a=7, between=0, b=9), "old to new")
    write(new, NEW, range(ROWS), a=8, between=5, b=10)
    until(lambda: has(old, OLD, ROWS, a=8, b=10), "new to old")
    assert has(new, NEW, ROWS, a=8, between=5, b=10)
    for node in (a, b):
        assert node.map_status()["parked"] == {}
        until(lambda node=node: node.map_status()["synced"] is True, "synced")  # type: ignore[misc]
    # Nothing goes back and forth: what was mapped is no change of the receiver's.
    until(lambda: [changes(node) for node in (a, b)] == [ROWS, ROWS], "captured")
    seen = a.status_written, b.status_written
    until(lambda: min(a.status_written - seen[0], b.status_written - seen[1]) > 1, "sweeps")
    assert [changes(node) for node in (a, b)] == [ROWS, ROWS]


def changes(node: NodeProcess) -> int:
    captured = node.map_status()["capture"]
    assert isinstance(captured, dict)
    return int(captured["changes"])


async def publish(rig: Rig, types: str, values: U8, *, offset: int = 0) -> None:
    """Changes of a node ``x``, which exists in the log only."""
    bus = await open_bus(BusSettings("x", (rig.server.url,)))
    try:
        described = MapSchema.of(CLUSTER, "flows", layout(types))
        store = SchemaStore(bus, CLUSTER)
        await store.put("flows", described.fingerprint, encode_schema(described))
        batch = DeltaBatch.of_entries(Op.UPDATE, rows_of(range(len(values)), KEY), values, 10**9)
        origin = Origin(CLUSTER, "flows", "x", time.time_ns() | 1)
        delta = Delta(origin, 1, batch, offset, fingerprint(layout(types)))
        await (await bus.publisher(origin)).publish(delta)
    finally:
        await bus.close()


def test_what_does_not_fit_is_parked_until_it_does(rig: Rig) -> None:
    old = rig.map("old", value_size=8)
    a = rig.node("a", entry(rig, "old", NARROW))
    wide = np.full((ROWS, 8), 1, np.uint8)
    asyncio.run(publish(rig, OLD, wide))
    until(lambda: a.map_status()["state"] == "parked", "parked")
    status = a.map_status()
    assert status["synced"] is False
    assert isinstance(status["parked"], dict)
    parked = status["parked"]["x"]
    assert parked["layout"] == f"{fingerprint(layout(OLD)):016x}"
    assert (parked["changes"], parked["reason"]) == (
        ROWS,
        "value.a: has become narrower (32 bits, now 16)",
    )
    assert content(old) == {}
    until(lambda: a.applied("parked") == ROWS, "counted")
    told = mapbridge("status", "-c", str(a.config_path))
    assert "parked" in told.stdout
    checked = mapbridge("schema", "check", "flows", "-c", str(a.config_path))
    assert checked.returncode == 1
    asyncio.run(publish(rig, NARROW, wide))
    until(lambda: a.map_status()["state"] == "running", "running")
    until(lambda: len(content(old)) == ROWS, "applied")
    until(lambda: a.map_status()["synced"] is True, "synced")
    assert a.map_status()["parked"] == {}


def test_times_are_rebased_and_local_fields_stay(rig: Rig) -> None:
    """The sender was booted a day before this machine, by its clocks."""
    target = rig.map("map", value_size=16)
    rules = '[maps.fields]\n"value.born" = "ktime"\n"value.index" = "local"\n'
    a = rig.node("a", entry(rig, "map", WITH_TIME, rules))
    write(target, WITH_TIME, range(3), born=5, index=7, n=1)
    until(lambda: published(a) == 3, "published")  # a later place in the log would win
    values = np.zeros((ROWS, 16), np.uint8)
    view = Decoder(layout(WITH_TIME).value, "value").view(values)
    born = time.monotonic_ns() + DAY
    view["born"], view["index"], view["n"] = born, 99, 2
    asyncio.run(publish(rig, WITH_TIME, values, offset=clock_offset_ns() - DAY))
    until(lambda: has(target, WITH_TIME, ROWS, n=2), "applied")
    found = columns(target, WITH_TIME)
    assert found["index"].tolist() == [7] * 3 + [0] * (ROWS - 3)
    moved = found["born"].astype(np.int64) - (born - DAY)
    assert (np.abs(moved) < 10**9).all()
    written = a.status_written
    until(lambda: a.status_written > written + 1, "sweeps")
    assert changes(a) == 3, "what differs by rule is no change"


A_DAY_LATER = ("unshare", "--time", "--monotonic", str(DAY // 10**9))  # a machine that is up longer
AGE = 3 * 10**9


def time_namespaces() -> bool:
    """Whether a process can have a kernel clock of its own from its exec on (Linux 6.1)."""
    script = "import time; print(time.monotonic_ns())"
    done = subprocess.run(
        [*A_DAY_LATER, sys.executable, "-c", script], capture_output=True, text=True, check=False
    )
    return done.returncode == 0 and int(done.stdout) > time.monotonic_ns() + DAY // 2


@pytest.mark.skipif(not time_namespaces(), reason="missing: time namespaces entered at exec")
def test_two_nodes_whose_uptimes_are_a_day_apart(rig: Rig) -> None:
    """Node b lives in a time namespace; what its program writes is of that clock."""
    here, there = rig.map("here", value_size=16), rig.map("there", value_size=16)
    rules = '[maps.fields]\n"value.born" = "ktime"\n'
    a = rig.node("a", entry(rig, "here", WITH_TIME, rules))
    b = rig.node("b", entry(rig, "there", WITH_TIME, rules), before=A_DAY_LATER)
    born = time.monotonic_ns() - AGE
    write(here, WITH_TIME, range(7), born=born, n=1)
    write(here, WITH_TIME, range(7, ROWS), born=0, n=1)
    until(lambda: len(content(there)) == ROWS, "here to there")
    assert same_age(columns(there, WITH_TIME)["born"][:7], born + DAY)
    assert columns(there, WITH_TIME)["born"][7:].tolist() == [0] * (ROWS - 7), "never stays never"
    write(there, WITH_TIME, range(ROWS), born=born + DAY + 11, n=2)
    until(lambda: set(columns(here, WITH_TIME)["n"].tolist()) == {2}, "there to here")
    assert same_age(columns(here, WITH_TIME)["born"], born + 11)
    seen = a.status_written, b.status_written
    until(lambda: min(a.status_written - seen[0], b.status_written - seen[1]) > 1, "sweeps")
    assert [changes(node) for node in (a, b)] == [ROWS, ROWS], "neither answers the other"


def same_age(found: Column, wanted: int) -> bool:
    """Within what the two readings of a clock are apart, far less than a second."""
    return bool((np.abs(found.astype(np.int64) - wanted) < 10**8).all())


def test_a_rule_that_cannot_be_kept_ends_the_node(rig: Rig) -> None:
    rig.map("old", value_size=8)
    rules = '[maps.fields]\n"value.a" = "ktime"\n'
    node = rig.node("a", entry(rig, "old", OLD, rules), ready=False)
    assert node.process.wait(60) == 78
    assert "rule ktime of value.a: needs an integer of 8 bytes" in node.log_path.read_text()
    checked = mapbridge("check", "-c", str(node.config_path))
    assert (checked.returncode, "rule ktime of value.a" in checked.stderr) == (78, True)
