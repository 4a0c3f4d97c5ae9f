"""Verify and diff with real nodes: equal replicas under load, drift that was made, its repair."""

from __future__ import annotations

import threading

import orjson
import pytest

from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap
from bridge.model import Role
from tests.integration.kernel_support import needs, rows_of
from tests.integration.test_node_layouts import DECLARED
from tests.node_kit import KEY, VALUE, Rig, content, fill, map_name, mapbridge, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)


class Three:
    """A node that publishes, two that apply."""

    def __init__(self, rig: Rig) -> None:
        self.name = map_name()
        self.maps: list[KernelMap] = []
        for node, role in (("a", Role.PUBLISH), ("b", Role.APPLY), ("c", Role.APPLY)):
            self.maps.append(rig.map(node))
            rig.node(node, rig.entry(self.name, node, role))
        self.config = str(rig.directory / "a" / "mapbridge.toml")
        fill(self.maps[0], range(5003), 1)
        until(self.equal, "equal maps")

    def equal(self) -> bool:
        return content(self.maps[0]) == content(self.maps[1]) == content(self.maps[2])

    def run(self, command: str, *arguments: str, code: int) -> dict[str, object]:
        ended = mapbridge(command, self.name, *arguments, "-c", self.config, "--json")
        assert ended.returncode == code, ended.stderr
        found = orjson.loads(ended.stdout)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def three(rig: Rig) -> Three:
    return Three(rig)


def test_equal_maps_are_said_to_be_equal(three: Three) -> None:
    found = three.run("verify", code=0)
    assert found["nodes"] == {"a": 5003, "b": 5003, "c": 5003}
    assert (found["equal"], found["drift"], found["rounds"]) == (True, 0, 1)
    assert three.run("diff", "a", "b", code=0)["differ"] == 0


def test_changes_that_go_on_are_no_drift(three: Three) -> None:
    ending = threading.Event()

    def write() -> None:
        number = 0
        while not ending.wait(0.01):
            number += 1
            fill(three.maps[0], range(number % 7, 5003, 97), number % 251)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert three.run("verify", code=0)["drift"] == 0
    finally:
        ending.set()
        writer.join()


def test_drift_is_found_shown_and_repaired(three: Three) -> None:
    changed, gone = rows_of(range(3), KEY), rows_of(range(17, 19), KEY)
    three.maps[1].delete_batch(gone)
    fill(three.maps[1], range(3), 9)
    fill(three.maps[1], range(6000, 6001), 9)
    wanted = {bytes(key).hex() for key in (*changed, *gone, *rows_of(range(6000, 6001), KEY))}

    found = three.run("verify", code=1)
    assert found["drift"] == 6
    assert set(found["keys"]) == wanted  # type: ignore[call-overload]

    shown = three.run("diff", "a", "b", "--hex", code=1)
    assert shown["differ"] == 6
    rows = {row["key"]: row for row in shown["keys"]}  # type: ignore[attr-defined]
    assert set(rows) == wanted
    assert rows[bytes(changed[0]).hex()]["b"] == (b"\x09" * VALUE).hex()
    assert rows[bytes(gone[0]).hex()]["b"] is None

    assert three.run("verify", "--repair", code=0)["repaired"] == 6
    until(three.equal, "repaired maps")
    assert three.run("verify", code=0)["equal"] is True


def test_a_map_that_runs_nowhere(three: Three) -> None:
    ended = mapbridge("verify", "no-such-map", "-c", three.config)
    assert ended.returncode == 69
    assert "nothing to compare" in ended.stderr
    assert "Try:" in ended.stderr


def test_a_map_without_a_layout_is_compared_by_its_bytes(rig: Rig) -> None:
    name = map_name()
    first, second = rig.map("a"), rig.map("b")
    rig.node("a", rig.entry(name, "a", Role.REPLICATE, DECLARED))
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    fill(first, range(101), 1)
    until(lambda: content(first) == content(second), "equal maps")
    config = str(rig.directory / "a" / "mapbridge.toml")
    ended = mapbridge("verify", name, "-c", config, "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert orjson.loads(ended.stdout)["nodes"] == {"a": 101, "b": 101}

    second.delete_batch(rows_of(range(1), KEY))
    there = str(rig.directory / "b" / "mapbridge.toml")
    shown = mapbridge("diff", name, "a", "b", "-c", there, "--json")
    (row,) = orjson.loads(shown.stdout)["keys"]
    assert set(row["key"]) == {"saddr", "daddr", "port", "mark"}, "by the layout beside the log"
    assert row["b"] is None


def test_maps_that_are_compared_by_different_rules_are_refused(rig: Rig) -> None:
    name = map_name()
    rig.map("a"), rig.map("b")
    rig.node("a", rig.entry(name, "a", Role.REPLICATE, 'ignore = ["0:8"]'))
    rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    ended = mapbridge("verify", name, "-c", str(rig.directory / "a" / "mapbridge.toml"))
    assert ended.returncode == 1
    assert "its sizes or field rules differ between nodes" in ended.stderr
    assert "Try: make them the same" in ended.stderr
