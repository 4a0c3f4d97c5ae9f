"""Whole nodes: real processes, a real server, real maps. What a map holds on one node arrives."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from pathlib import Path

import nats
import orjson

from bridge.kernel.features import Capability
from bridge.kernel.maps import MapType, create_map
from bridge.model import Origin, Role
from bridge.rig.broker import ServerThread
from bridge.rig.nodes import CLUSTER
from bridge.wire.subjects import delta_subject
from tests.integration.kernel_support import needs, rows_of, unique_name
from tests.node_kit import (
    DEADLINE_SECONDS,
    KEY,
    Rig,
    content,
    fill,
    map_name,
    mapbridge,
    published,
    until,
)

pytestmark = needs(Capability.CAP_SYS_ADMIN)


def test_inserts_updates_and_deletes_arrive(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    fill(a, range(1009), 1)  # before the bridge starts
    rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    until(lambda: content(a) == content(b), "what was there")
    fill(a, range(500, 2003), 2)
    a.delete_batch(rows_of(range(97), KEY))
    until(lambda: content(a) == content(b), "changes")
    assert len(content(b)) == 2003 - 97


def test_both_ways_without_echo(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node_a = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    node_b = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    fill(a, range(211), 1)
    fill(b, range(1000, 1307), 2)
    until(lambda: len(content(a)) == 518 and content(a) == content(b), "both")

    until(lambda: (published(node_a), published(node_b)) == (211, 307), "counts")
    settle = time.time() + 1.0  # several sweeps of each node
    until(lambda: min(node_a.status_written, node_b.status_written) > settle, "later statuses")
    assert (published(node_a), published(node_b)) == (211, 307)


def test_a_late_node_catches_up(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    fill(a, range(1009), 1)
    a.delete_batch(rows_of(range(101), KEY))
    node.stop()  # what was captured goes out before it ends
    rig.node("b", rig.entry(name, "b", Role.APPLY))
    until(lambda: content(a) == content(b), "history")


def test_it_waits_for_a_map_and_says_so(rig: Rig) -> None:
    name = map_name()
    node = rig.node("a", rig.entry(name, "a", Role.PUBLISH), ready=False)
    until(lambda: "waiting for the map to appear" in node.log_path.read_text(), "the word")
    assert node.process.poll() is None
    rig.map("a")
    node.await_running()


def test_two_maps_of_one_name_are_listed(rig: Rig) -> None:
    shared = unique_name("twin")
    with (
        create_map(MapType.HASH, 4, 4, 7, name=shared) as one,
        create_map(MapType.HASH, 4, 4, 7, name=shared) as two,
    ):
        config = rig.directory / "twins.toml"
        config.write_text(
            f'[node]\nname = "a"\nstate_dir = "{rig.directory}/twins"\n'
            f'[broker]\nurl = "{rig.server.url}"\n[capture]\nmode = "sweep"\n'
            f'[[maps]]\nname = "twin"\nmap = "{shared}"\n'
        )
        ended = mapbridge("run", "-c", str(config))
        assert ended.returncode == 78
        assert f"id {one.info.id}" in ended.stderr
        assert f"id {two.info.id}" in ended.stderr
        assert "Try:" in ended.stderr


def test_a_broker_that_comes_later(rig: Rig, tmp_path: Path) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    fill(a, range(53), 1)
    with ServerThread(tmp_path / "first") as first:
        url = first.url
    node = rig.node("a", rig.entry(name, "a", Role.PUBLISH), url=url, ready=False)
    until(lambda: url.rpartition(":")[2] in node.log_path.read_text(), "the trouble")
    assert node.process.poll() is None
    with ServerThread(tmp_path / "second", port=int(url.rpartition(":")[2])):
        node.await_running()
        other = rig.node("b", rig.entry(name, "b", Role.APPLY), url=url)
        until(lambda: content(a) == content(b), "all of it")
        other.stop()
        node.stop()


def test_other_sizes_are_refused_by_name_and_the_rest_goes_on(rig: Rig) -> None:
    a, wide, fine_a, fine_b = (
        rig.map("a"),
        rig.map("wide", value_size=32),
        rig.map("c"),
        rig.map("d"),
    )
    name, fine = map_name(), map_name()
    rig.node("a", rig.entry(name, "a", Role.PUBLISH), rig.entry(fine, "c", Role.PUBLISH))
    node = rig.node("b", rig.entry(name, "wide", Role.APPLY), rig.entry(fine, "d", Role.APPLY))
    fill(a, range(13), 1)
    fill(fine_a, range(17), 1)
    until(lambda: content(fine_a) == content(fine_b), "the other map")
    until(lambda: node.applied("rejected") >= 1, "the count")
    assert content(wide) == {}
    said = [line for line in node.log_path.read_text().splitlines() if "sizes differ" in line]
    assert len(said) == 1
    assert "here key 16 and value 32 bytes, from node a key 16 and value 24" in said[0]


def test_a_broken_message_is_counted_said_once_and_skipped(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    node = rig.node("b", rig.entry(name, "b", Role.APPLY))
    fill(a, range(13), 1)
    until(lambda: content(a) == content(b), "the first")

    async def break_in() -> None:
        client = await nats.connect(rig.server.url)
        for _ in range(3):
            await client.jetstream().publish(
                delta_subject(Origin(CLUSTER, name, "x", 1)), b"\xff\xfenonsense"
            )
        await client.close()

    asyncio.run(break_in())
    fill(a, range(100, 113), 2)
    until(lambda: content(a) == content(b), "the rest")

    def broken() -> int:
        stream = node.map_status()["stream"]
        assert isinstance(stream, dict)
        return int(stream["broken"])

    until(lambda: broken() == 3, "the count")
    assert node.log_path.read_text().count("message skipped") == 1


def test_a_second_bridge_with_the_same_state_is_refused(rig: Rig) -> None:
    rig.map("a")
    node = rig.node("a", rig.entry(map_name(), "a", Role.PUBLISH))
    ended = mapbridge("run", "-c", str(node.config_path))
    assert ended.returncode == 75
    assert f"in use by another bridge (process {node.process.pid})" in ended.stderr
    assert node.process.poll() is None


def test_a_map_that_cannot_be_bridged_is_refused_with_the_reason(rig: Rig) -> None:
    with create_map(MapType.QUEUE, 0, 4, 64, name=unique_name("queue")) as queue:
        queue.pin(rig.pins / "queue")
        node = rig.node("a", rig.entry(map_name(), "queue", Role.PUBLISH), ready=False)
        assert node.process.wait(DEADLINE_SECONDS) == 69
        assert "it has no keys" in node.log_path.read_text()


def test_without_privileges_it_says_what_is_missing(rig: Rig, tmp_path: Path) -> None:
    setpriv = shutil.which("setpriv")
    assert setpriv is not None, "util-linux belongs to every Debian"
    config = tmp_path / "mapbridge.toml"
    config.write_text(
        f'[node]\nname = "a"\nstate_dir = "{tmp_path}/state"\n'
        f'[broker]\nurl = "{rig.server.url}"\n[[maps]]\nname = "m"\nmap = "anything"\n'
    )
    # Still root by name, so that it can read this checkout wherever it lies; without its powers.
    drop = [setpriv, "--inh-caps=-all", "--bounding-set=-all"]
    ended = mapbridge("run", "-c", str(config), before=drop)
    assert ended.returncode == 77, ended.stderr
    assert "CAP_" in ended.stderr


def test_a_second_signal_ends_at_once(rig: Rig, tmp_path: Path) -> None:
    """The first one lets go out what was captured; without a broker that would take a while."""
    a, name = rig.map("a"), map_name()
    with ServerThread(tmp_path / "server") as gone:
        node = rig.node("a", rig.entry(name, "a", Role.PUBLISH), url=gone.url)
    fill(a, range(53), 1)
    node.process.send_signal(signal.SIGTERM)
    until(lambda: "a second signal ends at once" in node.log_path.read_text(), "the word")
    assert node.process.poll() is None
    node.process.send_signal(signal.SIGTERM)
    assert node.process.wait(DEADLINE_SECONDS) == 128 + signal.SIGTERM


def test_watch_prints_the_changes(rig: Rig) -> None:
    a, name = rig.map("a"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    fill(a, range(7), 5)
    config = ["-c", str(node.config_path)]
    ended = mapbridge("watch", name, *config, "--from-start", "--count", "7", "--json")
    assert ended.returncode == 0, ended.stderr
    lines = [orjson.loads(line) for line in ended.stdout.splitlines()]
    assert {line["op"] for line in lines} == {"update"}
    assert {line["node"] for line in lines} == {"a"}
    assert {bytes.fromhex(line["key"]) for line in lines} == set(content(a))
    assert {bytes.fromhex(line["value"]) for line in lines} == set(content(a).values())
    unknown = mapbridge("watch", "nothing", *config)
    assert unknown.returncode == 2
    assert name in unknown.stderr
