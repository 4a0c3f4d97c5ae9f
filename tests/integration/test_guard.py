"""A mass change halts a map, over restarts too, and nothing is lost; a dry run writes nothing."""

from __future__ import annotations

import orjson

from bridge.kernel.features import Capability
from bridge.model import Role
from bridge.rig.nodes import NodeProcess
from tests.integration.kernel_support import needs, rows_of
from tests.node_kit import KEY, Rig, content, fill, map_name, mapbridge, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)

GUARD = 'guard = { deletes = "50%", window = "10s" }'


def halted(node: NodeProcess) -> bool:
    return bool(node.map_status().get("halted"))


def test_a_mass_delete_waits_for_a_person(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    entry = rig.entry(name, "b", Role.APPLY, GUARD)
    node = rig.node("b", entry)
    fill(a, range(2003), 1)
    until(lambda: content(a) == content(b), "all entries")
    a.delete_batch(rows_of(range(499), KEY))
    until(lambda: content(a) == content(b), "a quarter may go")

    a.delete_batch(rows_of(range(499, 1999), KEY))
    until(lambda: halted(node), "the halt")
    fill(a, range(3000, 3101), 2)
    assert len(content(b)) == 1504
    config = str(node.config_path)
    asked = mapbridge("status", "--wait-synced", name, "--timeout", "0", "-c", config)
    assert asked.returncode == 75
    told = mapbridge("status", "-c", config).stdout
    assert "1999 of 2003 entries deleted" in told
    assert f"mapbridge resume {name}" in told
    node.stop()

    again = rig.node("b", entry, ready=False)
    until(lambda: halted(again), "the halt after a restart")
    assert len(content(b)) == 1504
    resumed = mapbridge("resume", name, "-c", config, "--json")
    assert resumed.returncode == 0, resumed.stderr
    assert "deleted" in orjson.loads(resumed.stdout)["reason"]
    until(lambda: content(a) == content(b), "nothing was lost")
    again.await_running()
    assert not halted(again)
    assert mapbridge("resume", name, "-c", config).returncode == 1, "it is not halted any more"


def test_other_maps_of_the_node_go_on(rig: Rig) -> None:
    name, other = map_name(), map_name()
    a, b, a2, b2 = rig.map("a"), rig.map("b"), rig.map("a2"), rig.map("b2")
    rig.node("a", rig.entry(name, "a", Role.PUBLISH), rig.entry(other, "a2", Role.PUBLISH))
    node = rig.node(
        "b", rig.entry(name, "b", Role.APPLY, GUARD), rig.entry(other, "b2", Role.APPLY)
    )
    fill(a, range(1009), 1)
    until(lambda: content(a) == content(b), "all entries")
    a.delete_batch(rows_of(range(997), KEY))
    until(lambda: halted(node), "the halt")
    fill(a, range(5000), 2)
    fill(a2, range(5003), 3)
    until(lambda: content(a2) == content(b2), "the other map")
    assert len(content(b)) == 1009


def test_a_dry_run_writes_and_publishes_nothing(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    fill(b, range(7000, 7101), 5)
    rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    dry = rig.node("b", rig.entry(name, "b", Role.REPLICATE), options=["--dry-run"])
    fill(a, range(1009), 1)
    until(lambda: dry.applied("updated") == 1009, "what would have been written")
    capture = dry.map_status()["capture"]
    assert isinstance(capture, dict)
    assert capture["scanned"] == 101, "what would have been published"
    assert set(content(b)) == {bytes(key) for key in rows_of(range(7000, 7101), KEY)}
    assert len(content(a)) == 1009
    assert not (dry.state_directory / "positions.json").exists()
    assert dry.status()["dry_run"] is True
