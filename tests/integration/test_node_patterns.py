"""Many maps by one pattern: those that are there, those that come, those that cannot be taken."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap, MapType, create_map
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.nodes import MapEntry, NodeProcess
from tests.integration.kernel_support import needs, pin_folder, unique_name
from tests.node_kit import KEY, VALUE, content, fill, mapbridge, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)
MANY = 199
IDLE_SECONDS = 5.0


class Side:
    """A node with all maps of a folder."""

    def __init__(self, name: str, directory: Path, server: ServerThread, folder: Path) -> None:
        self.name, self.directory, self.server, self.folder = name, directory, server, folder
        self.maps: dict[str, KernelMap] = {}
        self.started = 0.0

    def add(self, own_name: str, map_type: MapType = MapType.HASH) -> KernelMap:
        sizes = (KEY, VALUE) if map_type is MapType.HASH else (0, 4)
        made = create_map(map_type, *sizes, 64, name=unique_name("many"))
        made.pin(self.folder / own_name)
        self.maps[own_name] = made
        return made

    def remove(self, own_name: str) -> None:
        (self.folder / own_name).unlink()
        self.maps.pop(own_name).close()

    def start(self, role: Role, *more: MapEntry, name: str = "lb-*") -> NodeProcess:
        entry = MapEntry(name, self.folder / "*", role, more=('sweep = "1s"',))
        self.started = time.monotonic()
        return NodeProcess(
            self.name,
            self.directory,
            broker_url=self.server.url,
            maps=[entry, *more],
            capture="sweep",
        )

    def close(self) -> None:
        for own_name in list(self.maps):
            self.remove(own_name)


@pytest.fixture
def sides(tmp_path: Path) -> Iterator[tuple[Side, Side]]:
    with (
        pin_folder() as pins_a,
        pin_folder() as pins_b,
        ServerThread(tmp_path / "nats") as server,
    ):
        made = Side("a", tmp_path, server, pins_a), Side("b", tmp_path, server, pins_b)
        try:
            yield made
        finally:
            for side in made:
                side.close()


def states(node: NodeProcess) -> dict[str, str]:
    maps = node.status().get("maps")
    return {n: str(one["state"]) for n, one in maps.items()} if isinstance(maps, dict) else {}


def all_running(node: NodeProcess, count: int) -> bool:
    found = states(node)
    return len(found) == count and set(found.values()) == {"running"}


def descriptors(node: NodeProcess) -> int:
    return len(list(Path(f"/proc/{node.process.pid}/fd").iterdir()))


def test_many_maps_replicate(sides: tuple[Side, Side]) -> None:
    a, b = sides
    for number in range(MANY):
        fill(a.add(f"map{number}"), range(number % 7 + 1), number % 251)
        b.add(f"map{number}")
    with a.start(Role.REPLICATE) as node_a, b.start(Role.REPLICATE) as node_b:
        until(lambda: all_running(node_a, MANY), "all maps of a")
        a_seconds = time.monotonic() - a.started
        until(lambda: all_running(node_b, MANY), "all maps of b")

        def equal() -> bool:
            return all(content(a.maps[n]) == content(b.maps[n]) for n in a.maps)

        until(equal, "what was there")
        for number in range(0, MANY, 2):
            fill(b.maps[f"map{number}"], range(20, 23), 7)
        until(equal, "changes of half of them")
        before, began = node_a.cpu_seconds(), time.monotonic()
        until(lambda: time.monotonic() - began > IDLE_SECONDS, "an idle while")
        idle = (node_a.cpu_seconds() - before) / (time.monotonic() - began)
        print(
            f"{MANY} maps in {a_seconds:.1f} s, {descriptors(node_a)} descriptors, idle {idle:.1%}"
        )
        assert descriptors(node_a) < MANY + 50


def test_maps_that_come_and_go_are_taken_and_let_go(sides: tuple[Side, Side]) -> None:
    a, b = sides
    fill(a.add("one"), range(3), 1)
    with a.start(Role.PUBLISH) as node_a, b.start(Role.APPLY) as node_b:
        until(lambda: states(node_a) == {"lb-one": "running"}, "the first")
        fill(a.add("two"), range(5), 2)
        two = b.add("two")
        until(lambda: content(two) == content(a.maps["two"]), "a map that came later")
        a.remove("one")
        until(lambda: states(node_a) == {"lb-two": "running"}, "the first one is let go")
        fill(a.add("one"), range(11), 3)
        one = b.add("one")
        until(lambda: content(one).keys() >= content(a.maps["one"]).keys(), "and taken again")
        assert node_b.process.poll() is None
        config = ["-c", str(node_a.config_path)]
        told = mapbridge("status", "--wait-synced", "lb-one", *config)
        assert told.returncode == 0, told.stderr
        assert mapbridge("check", *config).returncode == 0
        assert mapbridge("status", "--wait-synced", "other", *config).returncode == 2


def test_what_cannot_be_taken_is_told_and_the_others_go_on(sides: tuple[Side, Side]) -> None:
    a, b = sides
    a.add("good")
    a.add("queue", MapType.QUEUE)
    a.maps["good"].pin(a.folder / "same")
    with a.start(Role.PUBLISH, MapEntry("*", b.folder / "*", Role.PUBLISH)) as node:
        until(lambda: states(node) == {"lb-good": "running"}, "the good one")
        log = node.log_path.read_text()
        assert "queue: cannot be bridged, it has no keys" in log
        assert "/same: the same map as" in log
        b.add("lb-good")  # would be called like the other one
        until(lambda: "two maps would get this name" in node.log_path.read_text(), "the conflict")
        assert str(b.folder / "lb-good") in node.log_path.read_text()
        assert str(a.folder / "good") in node.log_path.read_text()
        fill(a.maps["good"], range(3), 1)
        until(lambda: states(node) == {"lb-good": "running"}, "the good one still")
    with a.start(Role.PUBLISH, MapEntry("*", b.folder / "*", Role.PUBLISH)) as node:
        assert node.process.wait(60) == 78, "at the start a conflict is an error"
    (a.folder / "same").unlink()
