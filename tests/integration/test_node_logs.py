"""Whole nodes whose log is made anew, loses its end, or is another one."""

from __future__ import annotations

import shutil
from pathlib import Path

import orjson
import pytest

from bridge.bus.nats_bus import NatsBus
from bridge.bus.streams import LogSettings
from bridge.kernel.features import Capability
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.nodes import CLUSTER, NodeProcess
from bridge.wire.subjects import stream_name
from tests.integration.kernel_support import needs, rows_of
from tests.log_kit import await_new_life, keeper, snapshot, stream
from tests.node_kit import KEY, Rig, content, fill, map_name, published, until

pytestmark = [needs(Capability.CAP_SYS_ADMIN), pytest.mark.own_server]


def test_a_log_that_was_made_anew_is_filled_again(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    nodes = [rig.node(side, rig.entry(name, side, Role.REPLICATE)) for side in "ab"]
    fill(a, range(211), 1)
    until(lambda: content(b) == content(a), "the entries")
    snapshot(nodes[0], name)

    async def replace(bus: NatsBus) -> None:
        link = await bus.link()
        reply = await link.call(f"$JS.API.STREAM.DELETE.{stream_name(CLUSTER)}", {})
        assert not reply.error, reply.error
        await bus.ensure_log(CLUSTER, LogSettings())

    keeper(rig.server.url, replace)
    for node in nodes:
        await_new_life(node)
    fill(a, range(300, 353), 2)
    b.delete_batch(rows_of(range(17), KEY))
    until(lambda: len(content(a)) == 247 and content(a) == content(b), "the same")
    c = rig.map("c")
    rig.node("c", rig.entry(name, "c", Role.REPLICATE))
    until(lambda: content(c) == content(a), "what the new log says")


def test_a_log_that_went_back_behind_the_position_makes_the_map_join_anew(
    rig: Rig, tmp_path: Path
) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    directory = tmp_path / "broker"
    with ServerThread(directory) as first:
        port = int(first.url.rpartition(":")[2])
        node = rig.node("a", rig.entry(name, "a", Role.REPLICATE), url=first.url)
        fill(a, range(101), 1)
        until(lambda: stream(node, "received") > 0, "the first")
    shutil.copytree(directory, tmp_path / "copy")
    with ServerThread(directory, port=port):
        fill(a, range(50, 151), 2)
        until(lambda: stream(node, "received") > 1, "the second")
        until(lambda: saved(node, name) >= 2, "its position")
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "copy", directory)
    with ServerThread(directory, port=port) as last:
        await_new_life(node)
        other = rig.node("b", rig.entry(name, "b", Role.REPLICATE), url=last.url)
        until(lambda: content(a) == content(b), "the same")
        assert len(content(a)) == 151
        other.stop()
        node.stop()


def test_a_log_that_lost_its_end_and_grew_again_is_recognised(rig: Rig, tmp_path: Path) -> None:
    """It is as long as before, so its length says nothing."""
    a, b, c, name = rig.map("a"), rig.map("b"), rig.map("c"), map_name()
    directory = tmp_path / "broker"
    with ServerThread(directory) as first:
        port = int(first.url.rpartition(":")[2])
        node = rig.node("a", rig.entry(name, "a", Role.REPLICATE), url=first.url)
        stopped = rig.node("c", rig.entry(name, "c", Role.REPLICATE), url=first.url)
        fill(a, range(101), 1)
        until(lambda: content(a) == content(c), "the first")
    shutil.copytree(directory, tmp_path / "copy")
    with ServerThread(directory, port=port):
        fill(a, range(50, 151), 2)
        until(lambda: min(saved(node, name), saved(stopped, name)) >= 2, "their positions")
        stopped.stop()
    shutil.rmtree(directory)
    shutil.copytree(tmp_path / "copy", directory)
    with ServerThread(directory) as elsewhere:  # where node a does not find it
        other = rig.node("b", rig.entry(name, "b", Role.REPLICATE), url=elsewhere.url)
        for number in range(1, 4):
            fill(b, range(1000 * number, 1000 * number + 53), 3)
            until(lambda: published(other) == 53 * number, "others in their place")  # noqa: B023
        other.stop()
    with ServerThread(directory, port=port) as last:
        await_new_life(node)
        nodes = [
            rig.node(side, rig.entry(name, side, Role.REPLICATE), url=last.url) for side in "bc"
        ]
        until(lambda: content(a) == content(b) == content(c), "the same")
        assert len(content(a)) >= 101 + 3 * 53
        for each in (node, *nodes):
            each.stop()


def saved(node: NodeProcess, name: str) -> int:
    try:
        content = orjson.loads((node.state_directory / "positions.json").read_bytes())
    except FileNotFoundError:
        return 0
    return int(content.get(name, {}).get("sequence", 0))
