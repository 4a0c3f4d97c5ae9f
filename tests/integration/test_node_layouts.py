"""A node's changes name their layout, and the layout can be found beside the log."""

from __future__ import annotations

import json

import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.protocol import Received
from bridge.bus.schemas import SchemaStore
from bridge.feed.schema import decode_schema
from bridge.kernel.features import Capability
from bridge.layout.declared import read_declared
from bridge.layout.fingerprint import fingerprint
from bridge.model import Position, Role
from bridge.rig.nodes import CLUSTER, MapEntry
from tests.bus_kit import read_items
from tests.integration.kernel_support import needs
from tests.node_kit import Rig, fill, mapbridge, published, until

pytestmark = [
    needs(Capability.CAP_BPF, Capability.CAP_NET_ADMIN, Capability.CAP_SYS_ADMIN),
    pytest.mark.own_server,
]

TYPES = (
    "struct flow { __be32 saddr, daddr; __be16 port[2]; __u32 mark; };struct count { __u64 n[3]; };"
)
DECLARED = f'[maps.layout]\ntypes = """{TYPES}"""\nkey = "struct flow"\nvalue = "struct count"\n'
LAYOUT = read_declared(TYPES, "struct flow", "struct count")
ROWS = 13


async def opened(rig: Rig) -> NatsBus:
    return await open_bus(BusSettings("reader", (rig.server.url,)))


async def test_changes_name_a_layout_that_is_stored(rig: Rig) -> None:
    source = rig.map("flows")
    rig.node("a", MapEntry("flows", rig.pins / "flows", Role.PUBLISH, more=(DECLARED,)))
    bare = rig.map("bare")
    rig.node("b", MapEntry("bare", rig.pins / "bare", Role.PUBLISH))
    fill(source, range(ROWS), 7)
    fill(bare, range(ROWS), 7)
    until(lambda: all(published(node) == ROWS for node in rig.nodes), "published")
    bus = await opened(rig)
    try:
        named = {}
        for item in await read_items(bus.subscribe(CLUSTER, [], Position(0)), 2):
            assert isinstance(item, Received)
            named[item.delta.origin.map] = item.delta.layout
        assert named == {"flows": fingerprint(LAYOUT), "bare": 0}
        store = SchemaStore(bus, CLUSTER)
        stored = await store.get("flows", named["flows"])
        assert stored is not None
        assert decode_schema(stored.data).layout == LAYOUT
        assert await store.all("bare") == []
    finally:
        await bus.close()


def test_a_declared_layout_of_other_sizes_is_refused(rig: Rig) -> None:
    rig.map("flows", value_size=16)
    entry = MapEntry("flows", rig.pins / "flows", Role.PUBLISH, more=(DECLARED,))
    node = rig.node("a", entry, ready=False)
    assert node.process.wait(60) == 78
    assert "its value has 16 bytes (got a layout of 24, struct count)" in node.log_path.read_text()
    checked = mapbridge("check", "-c", str(node.config_path))
    assert (checked.returncode, "maps[0]: map" in checked.stderr) == (78, True), checked.stderr


def test_schema_of_a_declared_layout(rig: Rig) -> None:
    rig.map("flows")
    node = rig.node("a", MapEntry("flows", rig.pins / "flows", Role.PUBLISH, more=(DECLARED,)))
    shown = mapbridge("schema", "show", "flows", "-c", str(node.config_path))
    assert (shown.returncode, shown.stderr) == (0, "")
    assert f"layout {fingerprint(LAYOUT):#018x}" in shown.stdout
    assert "saddr" in shown.stdout
    proto = mapbridge("schema", "proto", "flows", "-c", str(node.config_path))
    assert "repeated uint32 port = " in proto.stdout


NEWER = TYPES.replace("__u64 n[3];", "__u32 version; __u64 n[3];")
NARROW = TYPES.replace("__u64 n[3];", "__u32 n[3];")


def test_schema_check_and_diff_against_the_cluster(rig: Rig) -> None:
    source = rig.map("flows")
    node = rig.node("a", MapEntry("flows", rig.pins / "flows", Role.PUBLISH, more=(DECLARED,)))
    fill(source, range(ROWS), 7)
    until(lambda: published(node) == ROWS, "published")
    text = node.config_path.read_text()
    number = f"{fingerprint(LAYOUT):016x}"
    for types, size, code, fits in (
        (TYPES, 24, 0, ("same", "same")),
        (NEWER, 32, 0, ("mapped", "mapped")),
        (NARROW, 12, 1, ("parked", "mapped")),
    ):
        made = rig.map(f"other{size}", value_size=size)
        config = rig.directory / f"{size}.toml"
        config.write_text(
            text.replace(str(rig.pins / "flows"), str(rig.pins / f"other{size}")).replace(
                TYPES, types
            )
        )
        checked = mapbridge("schema", "check", "flows", "-c", str(config), "--json")
        assert checked.returncode == code, checked.stderr
        (told,) = json.loads(checked.stdout)["cluster"]
        assert told["layout"] == number
        assert (told["to_here"]["fit"], told["from_here"]["fit"]) == fits
        compared = mapbridge("schema", "diff", f"flows@{number[:5]}", "flows", "-c", str(config))
        assert (compared.returncode, compared.stderr) == (0, "")
        assert ("changes from flows to" in compared.stdout) == (types != TYPES)
        assert made.info.value_size == size
    narrow = mapbridge("schema", "check", "flows", "-c", str(config))
    assert "value.n: has become narrower (64 bits, now 32)" in narrow.stdout
    assert f"Try: `mapbridge schema diff flows@{number} flows`" in narrow.stderr
    none = mapbridge("schema", "diff", "flows@0", "flows", "-c", str(config))
    assert (none.returncode, "no layout of map flows" in none.stderr) == (1, True)


def test_check_looks_at_the_filters_of_metrics(rig: Rig) -> None:
    rig.map("flows")
    metrics = '\n[[maps.metrics]]\nname = "a"\nwhere = "value.n[0] > 1"\n'
    path = rig.directory / "node.toml"
    head = (
        f'[node]\nname = "a"\nstate_dir = "{rig.directory}"\n[broker]\nurl = "{rig.server.url}"\n'
    )
    entry = f'[[maps]]\nname = "flows"\npin = "{rig.pins}/flows"\n{DECLARED}{metrics}'
    path.write_text(head + entry)
    good = mapbridge("check", "-c", str(path))
    assert (good.returncode, good.stderr) == (0, "")
    assert "value.n[0] > 1" in mapbridge("config", "show", "-c", str(path), "--json").stdout
    assert "metrics" in mapbridge("config", "show", "-c", str(path)).stdout
    for wrong, said in (("value.m > 1", "no field 'm'"), ("value.n[0] >", "invalid syntax")):
        path.write_text(head + entry.replace("value.n[0] > 1", wrong))
        found = mapbridge("check", "-c", str(path))
        assert found.returncode == 78
        assert "maps[0].metrics[0].where: " in found.stderr
        assert said in found.stderr
