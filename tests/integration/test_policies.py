"""Conflict policies with real nodes and maps that all of them write."""

from __future__ import annotations

import numpy as np

from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap
from bridge.model import Role
from tests.integration.kernel_support import needs, rows_of
from tests.node_kit import KEY, Rig, content, map_name, mapbridge, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)


def write(kernel_map: KernelMap, numbers: range, value: int) -> None:
    keys = rows_of(numbers, KEY)
    values = np.full((len(keys), 3), value, "<u8").view(np.uint8)
    assert kernel_map.update_batch(keys, values).done == len(keys)


def values(kernel_map: KernelMap) -> set[bytes]:
    return set(content(kernel_map).values())


def raw(value: int) -> bytes:
    return np.full(3, value, "<u8").tobytes()


def pair(rig: Rig, policy: str) -> tuple[KernelMap, KernelMap]:
    name, made = map_name(), []
    for node in ("a", "b"):
        made.append(rig.map(node))
        rig.node(node, rig.entry(name, node, Role.REPLICATE, f'conflict = "{policy}"'))
    return made[0], made[1]


def test_only_the_owner_changes_a_key(rig: Rig) -> None:
    a, b = pair(rig, "owner")
    write(a, range(101), 1)
    until(lambda: content(a) == content(b) and len(content(b)) == 101, "the owner's entries")
    write(b, range(97), 2)
    b.delete_batch(rows_of(range(97, 101), KEY))
    until(lambda: len(content(b)) == 101 and values(b) == {raw(1)}, "b has them back")
    assert values(a) == {raw(1)}
    a.delete_batch(rows_of(range(101), KEY))
    until(lambda: not content(b), "deleted")
    write(b, range(53), 3)
    until(lambda: content(a) == content(b) and values(a) == {raw(3)}, "b owns them now")


def test_numbers_only_grow(rig: Rig) -> None:
    a, b = pair(rig, "max")
    write(a, range(101), 1 << 63)
    until(lambda: content(a) == content(b) and len(content(b)) == 101, "entries")
    write(b, range(101), 7)
    until(lambda: values(b) == {raw(1 << 63)}, "b has the larger ones back")
    write(b, range(101), (1 << 63) + 1)
    until(lambda: content(a) == content(b) and values(a) == {raw((1 << 63) + 1)}, "larger")


def test_counters_of_several_nodes_are_added_up(rig: Rig) -> None:
    name, made = map_name(), []
    for node, role in (("a", Role.PUBLISH), ("b", Role.PUBLISH), ("c", Role.APPLY)):
        made.append(rig.map(node))
        rig.node(node, rig.entry(name, node, role, 'conflict = "sum"'))
    a, b, c = made
    write(a, range(101), 5)
    write(b, range(50, 211), 11)
    sums = {raw(5): 50, raw(16): 51, raw(11): 110}
    until(lambda: [*content(c).values()].count(raw(16)) == sums[raw(16)], "sums")
    until(lambda: len(content(c)) == 211, "all keys")
    write(a, range(101), 7)
    b.delete_batch(rows_of(range(50, 211), KEY))
    until(lambda: len(content(c)) == 101 and values(c) == {raw(7)}, "a's part is left")
    assert values(a) == {raw(7)}
    assert not content(b)


def test_who_adds_up_does_not_count(rig: Rig) -> None:
    rig.map("a")
    node = rig.node(
        "a", rig.entry(map_name(), "a", Role.REPLICATE, 'conflict = "sum"'), ready=False
    )
    until(lambda: node.process.poll() is not None, "the end")
    assert node.process.returncode == 78
    assert "role publish or apply" in node.log_path.read_text()


def test_max_wants_counters(rig: Rig) -> None:
    rig.map("a", value_size=12)
    node = rig.node(
        "a", rig.entry(map_name(), "a", Role.REPLICATE, 'conflict = "max"'), ready=False
    )
    until(lambda: node.process.poll() is not None, "the end")
    assert node.process.returncode == 78
    assert "8-byte" in node.log_path.read_text()
    assert mapbridge("check", "-c", str(node.config_path), "--no-environment").returncode == 0
