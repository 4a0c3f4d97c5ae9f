"""Nodes that may not make streams: at home where somebody else made them, told so elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.bus.link import ForbiddenError
from bridge.bus.nats_bus import open_bus
from bridge.errors import Exit
from bridge.model import Role
from bridge.rig.nodes import CLUSTER
from tests.node_kit import content, fill, mapbridge, until
from tests.permissions_kit import REFUSED, guarded

LAYOUT = (
    '[maps.layout]\ntypes = "struct k { __u32 n[4]; };"\nkey = "struct k"\nvalue = "__u64[3]"\n'
)
MADE = {
    "log": f"MAPBRIDGE_{CLUSTER}",
    "layouts": f"MAPBRIDGE_{CLUSTER}_SCHEMA",
    "snapshots": f"MAPBRIDGE-SNAPSHOTS_{CLUSTER}",
    "feeds": f"MAPBRIDGE_{CLUSTER}_FEED",
    "standing": f"KV_MAPBRIDGE-SYNC_{CLUSTER}",
}


def test_a_node_without_creation_joins_a_cluster_that_is_there(tmp_path: Path) -> None:
    users = {"first": [], "late": ["--no-create", "--map", "m"]}
    with guarded(tmp_path, users) as on:
        rig = on.rig
        a, b = rig.map("a"), rig.map("b")
        first = rig.node("first", rig.entry("m", "a", Role.REPLICATE, LAYOUT), url=on.url("first"))
        fill(a, range(101), 7)
        taken = mapbridge("snapshot", "m", "-c", str(first.config_path))
        assert taken.returncode == 0, taken.stderr
        late = rig.node("late", rig.entry("m", "b", Role.REPLICATE, LAYOUT), url=on.url("late"))
        until(lambda: len(content(b)) == 101, "it has what was there")
        fill(b, range(200, 303), 9)
        until(lambda: content(a) == content(b) and len(content(a)) == 204, "both are equal")
        taken = mapbridge("snapshot", "m", "-c", str(late.config_path))
        assert taken.returncode == 0, taken.stderr
        own = ["-c", str(late.config_path)]
        waited = mapbridge("status", "--wait-synced", "m", "--node", "late", *own)
        assert waited.returncode == 0, waited.stderr
        assert REFUSED not in late.log_path.read_text()


def test_a_node_without_creation_says_what_is_missing(tmp_path: Path) -> None:
    with guarded(tmp_path, {"late": ["--no-create"]}) as on:
        on.rig.map("a")
        entry = on.rig.entry("m", "a", Role.REPLICATE)
        node = on.rig.node("late", entry, url=on.url("late"), ready=False)
        assert node.process.wait(30) == Exit.CONFIG
        told = node.log_path.read_text()
        assert "does not exist on the broker, and this user may not make it" in told
        assert "--no-create" in told


@pytest.mark.parametrize("stream", MADE.values(), ids=MADE.keys())
async def test_nothing_is_made_without_creation(tmp_path: Path, stream: str) -> None:
    kind = "feed" if stream == MADE["feeds"] else "node"
    with guarded(tmp_path, {"u": ["--for", kind, "--no-create"]}) as on:
        bus = await open_bus(on.settings("u"))
        try:
            link = await bus.link()
            with pytest.raises(ForbiddenError):
                await link.call(f"$JS.API.STREAM.CREATE.{stream}", {"name": stream})
        finally:
            await bus.close()
