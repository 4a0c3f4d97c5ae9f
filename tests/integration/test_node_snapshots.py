"""Whole nodes that join, fall behind and come back while the log forgets."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import TypeVar

import orjson
import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.nats_bus import NatsBus, open_bus
from bridge.bus.streams import LogSettings
from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.nodes import CLUSTER, NodeProcess
from bridge.wire.subjects import stream_name
from tests.integration.kernel_support import needs, rows_of
from tests.node_kit import KEY, Rig, content, fill, map_name, mapbridge, published, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)
T = TypeVar("T")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ServerThread]:
    with ServerThread(tmp_path / "nats") as running:
        yield running


def keeper(url: str, work: Callable[[NatsBus], Awaitable[T]]) -> T:
    """Do something with the log as the one who keeps it."""

    async def run() -> T:
        bus = await open_bus(BusSettings("keeper", (url,)))
        try:
            return await work(bus)
        finally:
            await bus.close()

    return asyncio.run(run())


def forget(url: str, before: int) -> None:
    """Retention: the log loses everything up to ``before``."""

    async def purge(bus: NatsBus) -> None:
        link = await bus.link()
        reply = await link.call(f"$JS.API.STREAM.PURGE.{stream_name(CLUSTER)}", {"seq": before + 1})
        assert not reply.error, reply.error

    keeper(url, purge)


def snapshot(node: NodeProcess, name: str) -> dict[str, object]:
    ended = mapbridge("snapshot", name, "-c", str(node.config_path), "--json")
    assert ended.returncode == 0, ended.stderr
    answer = orjson.loads(ended.stdout)
    assert isinstance(answer, dict)
    return answer


def position(answer: dict[str, object]) -> int:
    found = answer["position"]
    assert isinstance(found, int)
    return found


def joined(node: NodeProcess) -> str:
    found = node.map_status().get("joined")
    return str(found["way"]) if isinstance(found, dict) else ""


def stream(node: NodeProcess, counter: str) -> int:
    found = node.map_status().get("stream")
    return int(found[counter]) if isinstance(found, dict) else 0


def await_new_life(node: NodeProcess) -> None:
    """The map was told to join anew, has done so, and a status was written since."""
    until(lambda: "joins anew" in node.log_path.read_text(), "the word")
    later = time.time() + 1.5
    until(lambda: node.status_written > later and synced(node), "the new life")


def synced(node: NodeProcess) -> bool:
    return bool(node.map_status().get("synced"))


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


class Line:
    """A TCP connection's way to the server that can be cut and mended."""

    def __init__(self, url: str) -> None:
        self._to = int(url.rpartition(":")[2])
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"nats://127.0.0.1:{self._listener.getsockname()[1]}"
        self._open: list[socket.socket] = []
        self._cut = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._cut.set()
        for end in self._open:
            with_shutdown(end)
        self._open.clear()

    def mend(self) -> None:
        self._cut.clear()

    def close(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._cut.is_set():
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._to))
            self._open += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=_pump, args=(one, other), daemon=True).start()


def with_shutdown(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


def _pump(one: socket.socket, other: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := one.recv(1 << 16):
            other.sendall(data)
    with_shutdown(other)


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


def connected(node: NodeProcess) -> bool:
    broker = node.status().get("broker")
    return bool(broker["connected"]) if isinstance(broker, dict) else True


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
