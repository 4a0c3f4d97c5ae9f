"""Whole nodes that join, fall behind and come back while the log forgets."""

from __future__ import annotations

import time

import pytest

from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap
from bridge.model import Role
from bridge.rig.nodes import NodeProcess
from tests.integration.kernel_support import needs, rows_of
from tests.log_kit import Line, connected, forget, joined, position, snapshot, stream, synced
from tests.node_kit import KEY, Rig, content, fill, map_name, mapbridge, published, until

pytestmark = [needs(Capability.CAP_SYS_ADMIN), pytest.mark.own_server]


def new_machine(rig: Rig, old: KernelMap, pin: str) -> KernelMap:
    """The map is gone with its content, and another one stands at its pin."""
    (rig.pins / pin).unlink()
    rig.maps.remove(old)
    old.close()
    return rig.map(pin)


def test_a_late_node_needs_no_history_before_the_snapshot(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    fill(a, range(1009), 1)
    a.delete_batch(rows_of(range(101), KEY))
    until(lambda: stream(node, "received") > 0, "its own message")
    taken = snapshot(node, name)
    assert taken["entries"] == 908
    fill(a, range(500, 1511), 2)
    forget(rig.server.url, position(taken))
    late = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    until(lambda: content(b) == content(a), "snapshot and tail")
    assert len(content(b)) == 1410
    assert joined(late) == "load"
    assert late.applied("loaded") == 908
    assert late.applied("missed") == 0, "what a snapshot holds is not missing"


def test_a_map_that_was_never_bridged_keeps_what_its_programs_wrote(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    fill(a, range(211), 1)
    until(lambda: stream(node, "received") > 0, "its own message")
    forget(rig.server.url, position(snapshot(node, name)))
    fill(b, range(1000, 1103), 7)
    rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    until(lambda: len(content(a)) == 314 and content(a) == content(b), "both sides' entries")


def test_a_node_that_was_away_too_long_takes_the_snapshot_and_drops_what_is_gone(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    away = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    fill(a, range(307), 1)
    until(lambda: content(b) == content(a), "the first entries")
    until((away.state_directory / "positions.json").exists, "a saved position")
    away.stop()
    a.delete_batch(rows_of(range(53), KEY))
    fill(a, range(300, 401), 2)
    until(lambda: published(node) == 307 + 53 + 101, "its own messages")
    later = time.time() + 0.7
    until(lambda: node.status_written > later and synced(node), "these written back")
    forget(rig.server.url, position(snapshot(node, name)))
    back = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    until(lambda: content(b) == content(a), "what the snapshot says")
    assert len(content(b)) == 348
    assert joined(back) == "load"
    assert back.applied("swept_out") == 53


def test_a_node_that_was_away_for_a_while_keeps_its_map_with_a_cut_log(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    away = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    fill(a, range(307), 1)
    until(lambda: content(b) == content(a), "the first entries")
    taken = snapshot(node, name)
    until((away.state_directory / "positions.json").exists, "a saved position")
    away.stop()
    forget(rig.server.url, position(taken))
    fill(b, range(1000, 1053), 3)  # its programs go on
    b.delete_batch(rows_of(range(29), KEY))
    fill(a, range(200, 251), 4)
    back = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    until(lambda: len(content(a)) == 331 and content(a) == content(b), "both sides' changes")
    assert joined(back) == "learn"


def test_a_rebooted_machine_gets_its_own_history_back(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    other = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    fill(a, range(211), 1)
    until(lambda: content(b) == content(a), "the entries")
    forget(rig.server.url, position(snapshot(other, name)))
    fill(a, range(200, 313), 2)
    until(lambda: content(b) == content(a), "the tail")
    node.stop()
    a = new_machine(rig, a, "a")
    rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    until(lambda: len(content(a)) == 313 and content(a) == content(b), "its own history")


def test_a_snapshot_is_taken_before_the_log_forgets_and_without_being_asked(rig: Rig) -> None:
    a, name = rig.map("a"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    fill(a, range(211), 1)
    until(lambda: stream(node, "received") > 0, "its own message")
    fill(a, range(7), 2)
    until(lambda: stream(node, "received") > 1, "the second")
    forget(rig.server.url, 1)  # and nobody holds what it said, but the node itself
    b = rig.map("b")
    late = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    until(lambda: content(b) == content(a), "the state")
    assert len(content(b)) == 211
    assert stream(late, "unmended") == 0


def taken(node: NodeProcess) -> int:
    found = node.map_status().get("snapshots")
    return int(found["taken"]) if isinstance(found, dict) else 0


def test_one_of_the_nodes_takes_a_snapshot_after_many_changes(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    often = '[snapshots]\nbytes = "16KiB"\n'
    nodes = [rig.node(side, rig.entry(name, side, Role.REPLICATE), more=often) for side in "ab"]
    for number in range(1, 3):  # the second one goes into the other slot
        fill(a, range(1009), number)
        until(lambda: sum(map(taken, nodes)) == number, "a snapshot")  # noqa: B023
    c = rig.map("c")
    late = rig.node("c", rig.entry(name, "c", Role.REPLICATE))
    until(lambda: content(c) == content(a) == content(b), "the state")
    assert joined(late) == "load"
    assert sum(map(taken, nodes)) == 2, "two nodes found it due, and one of them took it"


def test_a_hole_met_while_running_is_mended_by_a_snapshot(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    line = Line(rig.server.url)
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    reader = rig.node("b", rig.entry(name, "b", Role.REPLICATE), url=line.url)
    fill(a, range(211), 1)
    until(lambda: content(b) == content(a), "the first entries")
    line.cut()
    until(lambda: not connected(reader), "the cut")
    fill(b, range(2000, 2017), 9)  # not published yet
    before = stream(node, "received")
    a.delete_batch(rows_of(range(31), KEY))
    until(lambda: stream(node, "received") > before, "the deletes")
    fill(a, range(1000, 1103), 2)
    until(lambda: stream(node, "received") > before + 1, "the updates")
    forget(rig.server.url, position(snapshot(node, name)))
    line.mend()
    until(lambda: len(content(a)) == 300 and content(a) == content(b), "the same")
    until(lambda: stream(reader, "loads") == 1, "the count")
    assert stream(reader, "gaps") == 1
    assert stream(reader, "unmended") == 0
    assert reader.applied("swept_out") == 31
    line.close()


def test_a_snapshot_that_cannot_be_taken_says_why(rig: Rig) -> None:
    a, name, other = rig.map("a"), map_name(), map_name()
    rig.map("b")
    node = rig.node("a", rig.entry(name, "a", Role.PUBLISH), rig.entry(other, "b", Role.REPLICATE))
    fill(a, range(7), 1)
    config = ["-c", str(node.config_path)]
    refused = mapbridge("snapshot", name, *config)
    assert refused.returncode == 75
    assert "only published here" in refused.stderr
    assert mapbridge("snapshot", "nothing", *config).returncode == 2
    node.stop()
    ended = mapbridge("snapshot", other, *config)
    assert ended.returncode == 69
    assert "no bridge runs here" in ended.stderr
