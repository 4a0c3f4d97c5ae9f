"""A running node that takes another configuration: under load, while joining, twice, a bad one."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import orjson
import pytest

from bridge.bench.churn import LOSSES, MAP, OPERATIONS_MAX, RING, Churn, Writer, loaded_churn
from bridge.bench.sync_rate import twin
from bridge.errors import Exit
from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap
from bridge.kernel.objects import default_cache
from bridge.model import Role
from bridge.rig.compare import compare
from bridge.rig.nodes import MapEntry, NodeProcess
from tests.integration.kernel_support import needs, rows_of
from tests.node_kit import KEY, Rig, content, fill, map_name, mapbridge, published, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)
RATE, SECONDS = 20_000, 4.0


def configure(node: NodeProcess, *maps: MapEntry, more: str = "") -> None:
    """Give the node's file other maps."""
    head = node.config_path.read_text().partition("[[maps]]")[0]
    node.config_path.write_text(head + more + "\n".join(entry.toml() for entry in maps))


def reload(node: NodeProcess) -> dict[str, list[str]]:
    done = mapbridge("reload", "-c", str(node.config_path), "--json")
    assert done.returncode == 0, done.stderr
    answer = orjson.loads(done.stdout)
    return {what: answer[what] for what in ("added", "removed", "changed", "restart")}


def configuration(node: NodeProcess) -> dict[str, object]:
    found = node.status().get("configuration")
    return found if isinstance(found, dict) else {}


def states(node: NodeProcess) -> dict[str, str]:
    maps = node.status().get("maps")
    return {name: one["state"] for name, one in maps.items()} if isinstance(maps, dict) else {}


@contextmanager
def churning(pins: Path) -> Iterator[tuple[Churn, KernelMap]]:
    """A program that emits its changes, and an empty map of the same shape beside it."""
    with loaded_churn(default_cache(), pins / "churn", ["EMIT"]) as churn:
        churn.set_writer(0, Writer(1, 4_999, OPERATIONS_MAX, 102))
        with twin(churn.loaded.map(MAP), pins / "twin") as replica:
            try:
                yield churn, replica
            finally:
                (pins / "twin" / MAP).unlink()
                (pins / "twin").rmdir()


def emitting(churn: Churn) -> MapEntry:
    pin = churn.loaded.map_pin
    return MapEntry(MAP, pin(MAP), Role.PUBLISH, emit=(pin(RING), pin(LOSSES)))


def load(churn: Churn, seconds: float) -> subprocess.Popen[bytes]:
    program = str(churn.loaded.directory / "churn_run")
    arguments = [program, "1", str(RATE), str(seconds)]
    return subprocess.Popen([sys.executable, "-m", "bridge.bench.load", *arguments])


def test_maps_come_and_go_under_load_and_the_one_that_stays_is_not_touched(rig: Rig) -> None:
    a, b, other = rig.map("a"), rig.map("b"), map_name()
    with churning(rig.pins) as (churn, replica):
        stays = emitting(churn)
        comes = rig.entry(other, "a", Role.PUBLISH)
        node = rig.node("a", stays)
        to = MapEntry(MAP, rig.pins / "twin" / MAP, Role.APPLY)
        rig.node("b", to, rig.entry(other, "b", Role.APPLY))
        reloads = 0
        with load(churn, SECONDS) as process:
            while process.poll() is None:
                fill(a, range(reloads * 10, reloads * 10 + 7), reloads % 251)
                configure(node, stays, comes)
                assert reload(node)["added"] == [other]
                until(lambda: states(node).get(other) == "running", "the map has joined")
                fill(a, range(reloads * 10 + 7, reloads * 10 + 10), reloads % 251)
                configure(node, stays)
                assert reload(node)["removed"] == [other]
                until(lambda: other not in states(node), "the map is let go")
                until(lambda: content(b) == content(a), "all of it went out before")
                reloads += 1
            assert process.returncode == 0
        made = churn.writer(0).changes
        # Counted by one worker from the first change to the last: it was never made anew.
        until(lambda: published(node) == made, "each change once")
        until(lambda: compare(churn.loaded.map(MAP), replica).equal, "the replica is equal")
        print(f"{reloads} times added and removed, {made:,} changes meanwhile, 0 lost")
        assert reloads >= 1
        assert made > 0.8 * RATE * SECONDS
        assert node.map_status()["lives"] == 1
        assert int.from_bytes(churn.loaded.map(LOSSES).lookup(bytes(4)) or b"", "little") == 0


def test_the_map_under_load_itself_is_removed_and_added(rig: Rig) -> None:
    rig.map("a")
    with churning(rig.pins) as (churn, replica):
        idle, busy = rig.entry(map_name(), "a", Role.PUBLISH), emitting(churn)
        node = rig.node("a", idle, busy)
        rig.node("b", MapEntry(MAP, rig.pins / "twin" / MAP, Role.APPLY))
        source = churn.loaded.map(MAP)
        until(lambda: states(node).get(MAP) == "running", "the busy map")
        with load(churn, SECONDS / 2) as process:
            while process.poll() is None:
                configure(node, idle)
                assert reload(node)["removed"] == [MAP]
                configure(node, idle, busy)
                assert reload(node)["added"] == [MAP]
                until(lambda: states(node).get(MAP) == "running", "it has joined anew")
        until(lambda: compare(source, replica).equal, "the replica is equal")
        churn.run(0, 1_009)
        configure(node, idle)
        reload(node)
        until(lambda: MAP not in states(node), "it is let go")
        until(lambda: compare(source, replica).equal, "what was captured went out before")


def test_a_bad_configuration_changes_nothing_and_says_so(rig: Rig) -> None:
    rig.map("a")
    rig.map("c")
    name = map_name()
    good = rig.entry(name, "a", Role.REPLICATE)
    node = rig.node("a", good)
    bad = rig.entry("other", "c", Role.REPLICATE, 'sweep = "never"')
    configure(node, good, bad)
    done = mapbridge("reload", "-c", str(node.config_path))
    assert done.returncode == Exit.CONFIG
    assert "maps[1].sweep: must be a duration" in done.stderr
    node.process.send_signal(signal.SIGHUP)
    until(lambda: configuration(node).get("refused") == 1, "the daemon has read it too")
    assert "maps[1].sweep" in str(configuration(node)["trouble"])
    assert "nothing was changed" in node.log_path.read_text()
    assert "configuration:" in mapbridge("status", "-c", str(rig_copy(node, good))).stdout
    # A file that is as it should be, of a map that cannot be bridged like that.
    configure(node, good, rig.entry("other", "c", Role.REPLICATE, 'ignore = ["90:91"]'))
    done = mapbridge("reload", "-c", str(node.config_path))
    assert done.returncode == Exit.CONFIG
    assert "maps[1]: map other: ignore 90:91: values have 24 bytes" in done.stderr
    assert states(node) == {name: "running"}
    configure(node, good)
    assert reload(node) == {"added": [], "removed": [], "changed": [], "restart": []}
    assert configuration(node)["trouble"] is None
    assert node.map_status()["lives"] == 1


def rig_copy(node: NodeProcess, good: MapEntry) -> Path:
    """The node's file as it was before, for commands that need one."""
    head = node.config_path.read_text().partition("[[maps]]")[0]
    path = node.state_directory / "good.toml"
    path.write_text(head + good.toml())
    return path


def test_what_is_read_at_the_start_only_is_named(rig: Rig) -> None:
    rig.map("a")
    name = map_name()
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    text = node.config_path.read_text().replace('mode = "sweep"', 'mode = "auto"')
    node.config_path.write_text(text + 'lag = "9s"\n')
    answer = reload(node)
    assert answer == {"added": [], "removed": [], "changed": [name], "restart": ["capture.mode"]}
    assert configuration(node)["restart_needed"] == ["capture.mode"]
    assert node.map_status()["lives"] == 1, "a limit that is only compared needs no new worker"


def test_twice_quickly_and_while_joining(rig: Rig) -> None:
    a, b, names = rig.map("a"), rig.map("b"), [map_name() for _ in range(3)]
    for pin in ("c", "d"):
        rig.map(pin)
    fill(a, range(2_003), 1)
    entries = [rig.entry(name, pin, Role.REPLICATE) for name, pin in zip(names, "acd", strict=True)]
    rig.node("b", rig.entry(names[0], "b", Role.REPLICATE))
    node = rig.node("a", *entries, ready=False)
    until(lambda: bool(states(node)), "the first look")
    for number in range(11):
        configure(node, entries[1 + number % 2], *(entries[:1] if number % 3 else ()))
        node.process.send_signal(signal.SIGHUP)
        time.sleep(0.03 * (number % 4))
    configure(node, *entries)
    reload(node)
    until(lambda: states(node) == dict.fromkeys(names, "running"), "all of them")
    fill(b, range(3_000, 3_053), 2)
    until(lambda: content(a) == content(b), "equal")
    assert len(content(a)) == 2_003 + 53
    assert node.process.poll() is None


def test_a_map_that_a_pattern_had_found_gets_a_table_of_its_own(rig: Rig) -> None:
    (rig.pins / "lb").mkdir()
    a, b = rig.map("lb/vips"), rig.map("b")
    pattern = MapEntry("lb-*", rig.pins / "lb" / "*", Role.REPLICATE)
    node = rig.node("a", pattern, ready=False)
    rig.node("b", rig.entry("lb-vips", "b", Role.REPLICATE), rig.entry("mine", "b2", Role.APPLY))
    until(lambda: states(node) == {"lb-vips": "running"}, "the pattern's")
    # The same name and settings: it stays as it is.
    configure(node, rig.entry("lb-vips", "lb/vips", Role.REPLICATE), pattern)
    reload(node)
    maps = node.status()["maps"]
    assert isinstance(maps, dict)
    assert maps["lb-vips"]["lives"] == 1
    fill(a, range(53), 1)
    until(lambda: content(a) == content(b), "equal")
    # Another name: one lets the map go before the other takes it.
    b2 = rig.map("b2")
    configure(node, rig.entry("mine", "lb/vips", Role.PUBLISH), pattern)
    reload(node)
    until(lambda: states(node) == {"mine": "running"}, "under its new name")
    fill(a, range(100, 111), 2)
    until(lambda: content(b2) == content(a), "equal under the new name")
    (rig.pins / "lb" / "vips").unlink()
    until(lambda: states(node) == {"mine": "waiting"}, "gone")
    (rig.pins / "lb").rmdir()
    assert node.process.poll() is None


@pytest.mark.parametrize("role", [Role.PUBLISH, Role.REPLICATE])
def test_a_map_that_is_added_again_joins_as_after_a_restart(rig: Rig, role: Role) -> None:
    a, b, rest, name = rig.map("a"), rig.map("b"), rig.map("c"), map_name()
    keeps, comes = rig.entry(map_name(), "c", Role.REPLICATE), rig.entry(name, "a", role)
    node = rig.node("a", keeps, comes)
    rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    fill(a, range(211), 1)
    until(lambda: content(a) == content(b), "the first")
    configure(node, keeps)
    reload(node)
    until(lambda: name not in states(node), "it is let go")
    fill(a, range(300, 353), 2)
    a.delete_batch(rows_of(range(11), KEY))
    fill(b, range(400, 453), 3)
    configure(node, keeps, comes)
    reload(node)
    until(lambda: states(node).get(name) == "running", "it is back")
    if role is Role.REPLICATE:
        until(lambda: content(a) == content(b), "the same on both")
    until(lambda: len(content(b)) == 211 - 11 + 53 + 53, "what changed on both sides")
    assert content(rest) == {}
