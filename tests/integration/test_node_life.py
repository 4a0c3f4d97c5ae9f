"""Maps that come, go, and are made anew under a running node."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap, MapType, create_map
from bridge.model import Role
from bridge.rig.nodes import MapEntry, NodeProcess
from tests.integration.kernel_support import needs, rows_of, unique_name
from tests.node_kit import KEY, VALUE, Rig, content, fill, map_name, published, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)


def named(rig: Rig, kernel_name: str) -> KernelMap:
    made = create_map(MapType.HASH, KEY, VALUE, 1024, name=kernel_name)
    rig.maps.append(made)
    return made


def lives(node: NodeProcess) -> int:
    return int(str(node.map_status().get("lives", 0)))


def state(node: NodeProcess) -> object:
    return node.map_status().get("state")


def map_descriptors(node: NodeProcess) -> int:
    folder = Path(f"/proc/{node.process.pid}/fd")
    found = 0
    for name in os.listdir(folder):  # noqa: PTH208 - descriptors come and go
        try:
            found += "bpf-map" in os.readlink(folder / name)  # noqa: PTH115
        except OSError:
            continue
    return found


@pytest.mark.parametrize("role", [Role.PUBLISH, Role.REPLICATE])
def test_a_map_that_was_replaced_is_followed_and_the_others_go_on(rig: Rig, role: Role) -> None:
    old, b, name = rig.map("a"), rig.map("b"), map_name()
    other_a, other_b, other = rig.map("c"), rig.map("d"), map_name()
    node = rig.node("a", rig.entry(name, "a", role), rig.entry(other, "c", role))
    rig.node("b", rig.entry(name, "b", Role.APPLY), rig.entry(other, "d", Role.APPLY))
    fill(old, range(53), 1)
    (rig.pins / "a").unlink()
    fill(old, range(100, 153), 1)  # goes out before the new one takes over
    new = rig.map("a")
    fill(new, range(200, 253), 2)
    until(lambda: lives(node) == 2 and state(node) == "running", "the new map")
    until(lambda: len(content(b)) == 3 * 53, "of both maps")
    fill(new, range(53), 3)
    fill(other_a, range(17), 4)
    until(lambda: content(other_b) == content(other_a), "the other map")
    until(lambda: content(b) | content(new) == content(b), "changes of the new map")
    if role is Role.REPLICATE:
        until(lambda: content(new) == content(b), "the new map holds what the stream holds")
    fill(old, range(300, 307), 5)
    new.delete_batch(rows_of(range(200, 211), KEY))
    until(lambda: len(content(b)) == 3 * 53 - 11, "deletes of the new, nothing of the old")
    assert node.map_status()["id"] == new.info.id
    assert node.process.poll() is None


def test_a_map_that_is_pinned_again_at_once_stays(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    for number in range(7):
        (rig.pins / "a").unlink()
        a.pin(rig.pins / "a")
        fill(a, range(number * 10, number * 10 + 7), number)
    until(lambda: content(a) == content(b), "all of it")
    seen = node.status_written + 3.0
    until(lambda: node.status_written > seen, "some looks")
    assert lives(node) == 1


def test_a_map_that_went_is_let_go_and_found_again(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    fill(a, range(211), 1)
    until(lambda: content(a) == content(b), "the first")
    held = map_descriptors(node)
    (rig.pins / "a").unlink()
    until(lambda: state(node) == "waiting", "it is gone")
    assert map_descriptors(node) == held - 1
    # It lives on without its pin: what changes on both sides meanwhile is reconciled.
    fill(a, range(300, 353), 2)
    a.delete_batch(rows_of(range(11), KEY))
    fill(b, range(400, 453), 3)
    a.pin(rig.pins / "a")
    until(lambda: state(node) == "running", "it is back")
    until(lambda: content(a) == content(b), "the same on both")
    assert len(content(a)) == 211 - 11 + 53 + 53
    assert map_descriptors(node) == held
    assert lives(node) == 2


def test_a_map_that_only_the_bridge_has_is_gone(rig: Rig) -> None:
    name, kernel_name = map_name(), unique_name("life")
    a, b = named(rig, kernel_name), rig.map("b")
    node = rig.node("a", MapEntry(name, Path(), Role.PUBLISH, kernel_name=kernel_name))
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    fill(a, range(53), 1)
    until(lambda: content(a) == content(b), "the first")
    a.close()
    until(lambda: state(node) == "waiting", "nobody else has it")
    new = named(rig, kernel_name)
    fill(new, range(100, 153), 2)
    until(lambda: lives(node) == 2 and state(node) == "running", "the next of its name")
    until(lambda: len(content(b)) == 2 * 53, "what it holds")


def test_of_two_generations_the_old_one_is_followed_as_long_as_somebody_has_it(rig: Rig) -> None:
    name, kernel_name = map_name(), unique_name("life")
    old, b = named(rig, kernel_name), rig.map("b")
    node = rig.node("a", MapEntry(name, Path(), Role.PUBLISH, kernel_name=kernel_name))
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    new = named(rig, kernel_name)
    fill(new, range(100, 153), 2)
    until(lambda: "a newer map has the same name" in node.log_path.read_text(), "the word")
    fill(old, range(53), 1)
    until(lambda: content(b) == content(old), "of the old one")
    old.close()
    until(lambda: lives(node) == 2 and state(node) == "running", "the new one")
    until(lambda: len(content(b)) == 2 * 53, "of the new one")


def test_a_new_map_that_cannot_be_bridged_is_told_and_the_node_goes_on(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    fill(a, range(7), 1)
    until(lambda: content(a) == content(b), "the first")
    (rig.pins / "a").unlink()
    with create_map(MapType.QUEUE, 0, 4, 64, name=unique_name("queue")) as queue:
        queue.pin(rig.pins / "a")
        until(lambda: "cannot be bridged" in node.log_path.read_text(), "the reason")
        assert state(node) == "waiting"
        (rig.pins / "a").unlink()
    new = rig.map("a")
    fill(new, range(7), 2)
    until(lambda: content(new) == content(b), "the next one")
    assert node.log_path.read_text().count("cannot be bridged") == 1


def test_what_was_deleted_while_a_publisher_was_away_is_deleted_elsewhere(rig: Rig) -> None:
    a, b, c, name = rig.map("a"), rig.map("b"), rig.map("c"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    rig.node("c", rig.entry(name, "c", Role.REPLICATE))
    fill(a, range(211), 1)
    until(lambda: content(b) == content(c) == content(a), "the first")
    fill(c, range(200, 223), 9)  # by another node: of these the map of a knows nothing
    until(lambda: content(b) == content(c), "what the other one wrote")
    node.stop()
    a.delete_batch(rows_of(range(53), KEY))
    fill(a, range(100, 117), 2)
    again = rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    until(lambda: published(again) == 53 + 17, "what changed, and nothing else")
    others = {row.tobytes(): bytes([9]) * VALUE for row in rows_of(range(200, 223), KEY)}
    expected = content(a) | others
    until(lambda: content(b) == content(c) == expected, "the same everywhere")
    assert "the map lived on" in again.log_path.read_text()


def test_a_publisher_that_was_killed_loses_nothing(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    fill(a, range(101), 1)
    until(lambda: content(b) == content(a), "the first")
    saved = node.state_directory / "positions.json"
    until(lambda: saved.exists() and name in saved.read_text(), "the position")
    node.process.kill()
    node.process.wait()
    a.delete_batch(rows_of(range(47), KEY))
    fill(a, range(300, 307), 2)
    rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    until(lambda: content(b) == content(a), "deletes too")


def test_a_publisher_on_a_new_map_deletes_nothing(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    fill(a, range(101), 1)
    until(lambda: content(b) == content(a), "the first")
    node.stop()
    (rig.pins / "a").unlink()
    fill(rig.map("a"), range(90, 123), 2)
    rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    until(lambda: len(content(b)) == 123, "what the new map holds, beside what the old one held")
