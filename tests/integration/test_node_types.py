"""Whole nodes with maps that are not plain hashes: prefixes, evictions, values per CPU."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest

from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap, MapFlag, MapType, create_map
from bridge.model import U8, Role
from tests.integration.kernel_support import needs, rows_of, unique_name
from tests.node_kit import DEADLINE_SECONDS, Rig, content, map_name, published, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)

in_both_modes = pytest.mark.parametrize("rig", ["sweep", "syscall"], indirect=True)


def made(rig: Rig, name: str, map_type: MapType, key: int, entries: int) -> KernelMap:
    flags = MapFlag.NO_PREALLOC if map_type is MapType.LPM_TRIE else MapFlag.NONE
    kernel_map = create_map(map_type, key, 8, entries, name=unique_name("typed"), flags=flags)
    kernel_map.pin(rig.pins / name)
    rig.maps.append(kernel_map)
    return kernel_map


def prefix(length: int, *address: int) -> bytes:
    return struct.pack("<I4B", length, *address)


def values(kernel_map: KernelMap, count: int, value: int) -> U8:
    return np.full((count, kernel_map.info.value_size), value, np.uint8)


@in_both_modes
def test_prefixes_are_the_same_whatever_stands_behind_them(rig: Rig) -> None:
    a, b = (made(rig, name, MapType.LPM_TRIE, 8, 1009) for name in ("a", "b"))
    name = map_name()
    rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    for number in range(101):
        a.update(prefix(24, 10, 1, number, 77), bytes([1] * 8))
        b.update(prefix(16, 20, number, 3, 4), bytes([2] * 8))
    until(lambda: len(content(b)) == 202 and same_routes(a, b), "all prefixes")
    a.update(prefix(24, 10, 1, 7, 99), bytes([3] * 8))  # the entry of 10.1.7.77/24
    b.delete(prefix(24, 10, 1, 8, 200))
    until(lambda: routes(b).get(prefix(24, 10, 1, 7, 0)) == bytes([3] * 8), "an overwrite")
    until(lambda: prefix(24, 10, 1, 8, 0) not in routes(a), "a delete")
    assert same_routes(a, b)
    assert len(routes(a)) == 201


def routes(kernel_map: KernelMap) -> dict[bytes, bytes]:
    """By network: what the kernel was told of the bits behind a prefix is its own affair."""
    found = {}
    for key, value in content(kernel_map).items():
        length = key[0]
        number = int.from_bytes(key[4:], "big") >> (32 - length) << (32 - length)
        found[key[:4] + number.to_bytes(4, "big")] = value
    return found


def same_routes(a: KernelMap, b: KernelMap) -> bool:
    return routes(a) == routes(b)


@in_both_modes
def test_a_full_lru_map_does_not_empty_the_others(rig: Rig) -> None:
    a = made(rig, "a", MapType.LRU_HASH, 4, 512)
    b = made(rig, "b", MapType.HASH, 4, 16_384)
    name = map_name()
    rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    for start in range(0, 2048, 256):
        keys = rows_of(range(start, start + 256), 4)
        assert a.update_batch(keys, values(a, 256, 5)).done == 256
        held = set(content(a))
        until(lambda held=held: held <= set(content(b)), "what it holds")  # type: ignore[misc]
    assert a.count() <= 512 < b.count()
    if rig.capture == "syscall":  # a sweep takes a key that is gone for evicted
        gone = next(iter(content(a)))
        a.delete(gone)
        until(lambda: gone not in content(b), "a delete")


def test_evictions_are_deletes_where_they_are_to_be(rig: Rig) -> None:
    a = made(rig, "a", MapType.LRU_HASH, 4, 512)
    b = made(rig, "b", MapType.HASH, 4, 16_384)
    name = map_name()
    entry = replace(
        rig.entry(name, "a", Role.PUBLISH), more=('evict = "replicate"', 'sweep = "100ms"')
    )
    rig.node("a", entry)
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    for start in range(0, 2048, 256):
        keys = rows_of(range(start, start + 256), 4)
        assert a.update_batch(keys, values(a, 256, 5)).done == 256
    until(lambda: content(a) == content(b), "what is left")
    gone = next(iter(content(a)))
    a.delete(gone)
    until(lambda: content(a) == content(b), "a delete")
    assert gone not in content(b)


@pytest.mark.parametrize(
    ("rig", "map_type"),
    [("sweep", MapType.PERCPU_ARRAY), ("syscall", MapType.PERCPU_HASH)],
    indirect=["rig"],
)
def test_values_of_all_cpus_are_published(rig: Rig, map_type: MapType) -> None:
    a = made(rig, "a", map_type, 4, 211)
    node = rig.node("a", rig.entry(map_name(), "a", Role.PUBLISH))
    before = published(node)
    keys = rows_of(range(101), 4)
    assert a.update_batch(keys, values(a, 101, 9)).done == 101
    until(lambda: published(node) - before >= 101, "all keys")
    assert published(node) - before == 101


def test_values_of_cpus_are_not_applied(rig: Rig) -> None:
    made(rig, "a", MapType.PERCPU_HASH, 4, 211)
    node = rig.node("a", rig.entry(map_name(), "a", Role.REPLICATE), ready=False)
    assert node.process.wait(DEADLINE_SECONDS) == 69
    log = node.log_path.read_text()
    assert "its values belong to the CPUs of this machine (got role replicate)" in log
    assert 'set role = \\"publish\\"' in log
