"""Whole nodes in trouble: conflicts, kills, a broker that dies, a small map, a second instance."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np

from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.nodes import NodeProcess
from tests.integration.kernel_support import needs, rows_of
from tests.node_kit import DEADLINE_SECONDS, KEY, VALUE, Rig, content, fill, map_name, until

pytestmark = needs(Capability.CAP_SYS_ADMIN)


class Writer(threading.Thread):
    """A local program: random updates and deletes of the same few hundred keys, until stopped."""

    def __init__(self, target: KernelMap, seed: int, keys: range = range(499)) -> None:
        super().__init__(daemon=True)
        self._target, self._keys = target, rows_of(keys, KEY)
        self._random = np.random.default_rng(seed)
        self._stopped = threading.Event()
        self.rounds = 0
        self.start()

    def run(self) -> None:
        while not self._stopped.wait(0.002):
            rows = self._random.permutation(len(self._keys))[:61]
            values = self._random.integers(1, 255, (len(rows), VALUE), np.uint8)
            self._target.update_batch(self._keys[rows], values)
            for row in rows[:7]:
                self._target.delete(self._keys[row].tobytes())
            self.rounds += 1

    def stop(self) -> None:
        self._stopped.set()
        self.join()


def rounds(writers: list[Writer], count: int) -> None:
    until(lambda: min(w.rounds for w in writers) >= count, "writes")


def swept(*nodes: NodeProcess) -> None:
    """Several sweeps of each node have passed."""
    later = time.time() + 1.0
    until(lambda: min(node.status_written for node in nodes) > later, "later statuses")


def test_conflicting_writers_on_both_nodes_end_with_the_fold_of_the_stream(rig: Rig) -> None:
    a, b, c, name = rig.map("a"), rig.map("b"), rig.map("c"), map_name()
    node_a = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    node_b = rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    writers = [Writer(a, 1), Writer(b, 2)]
    rounds(writers, 503)
    for writer in writers:
        writer.stop()
    swept(node_a, node_b)
    until(lambda: content(a) == content(b), "the same on both")
    rig.node("c", rig.entry(name, "c", Role.APPLY))
    until(lambda: content(c) == content(a), "what the stream says")
    swept(node_a, node_b)
    assert content(a) == content(b) == content(c)
    assert 0 < len(content(a)) <= 499


def test_a_map_that_is_too_small_deletes_nothing_elsewhere(rig: Rig) -> None:
    a, small, name = rig.map("a"), rig.map("small", entries=101), map_name()
    node_a = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    node = rig.node("b", rig.entry(name, "small", Role.REPLICATE))
    fill(a, range(211), 1)
    until(lambda: node.applied("unwritten") == 110, "the refused ones")
    swept(node_a, node)
    assert len(content(a)) == 211
    a.delete_batch(rows_of(range(150), KEY))
    until(lambda: content(small) == content(a), "all of them")
    assert len(content(a)) == 61
    assert node.log_path.read_text().count("full, updates of other nodes were refused") == 1


def test_killed_nodes_start_again(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    entries = {"a": rig.entry(name, "a", Role.PUBLISH), "b": rig.entry(name, "b", Role.APPLY)}
    nodes = [rig.node(side, entry) for side, entry in entries.items()]
    writer = Writer(a, 3)
    for _ in range(2):
        rounds([writer], writer.rounds + 101)
        for node in nodes:
            node.process.kill()
            node.process.wait()
        nodes = [rig.node(side, entry) for side, entry in entries.items()]
    rounds([writer], writer.rounds + 101)
    writer.stop()
    until(lambda: content(a) == content(b), "the same")


def test_a_broker_that_is_killed_under_load_comes_back(rig: Rig, tmp_path: Path) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    with ServerThread(tmp_path / "first") as first:
        nodes = [
            rig.node(side, rig.entry(name, side, Role.REPLICATE), url=first.url) for side in "ab"
        ]
        writers = [Writer(a, 4), Writer(b, 5)]
        rounds(writers, 101)
        kill_server(tmp_path / "first")
        until(lambda: min(reconnects(node) for node in nodes) >= 1, "new connections")
        rounds(writers, max(w.rounds for w in writers) + 101)
        for writer in writers:
            writer.stop()
        swept(*nodes)
        until(lambda: content(a) == content(b), "the same on both")
        for node in nodes:
            node.stop()


def kill_server(directory: Path) -> None:
    """The one nats-server that works in ``directory``; its keeper starts another."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"nats-server" in words[0] and any(str(directory).encode() in w for w in words):
            os.kill(int(process.name), signal.SIGKILL)
            return
    raise AssertionError(f"no nats-server in {directory}")


def reconnects(node: NodeProcess) -> int:
    broker = node.status().get("broker")
    return int(broker["reconnects"]) if isinstance(broker, dict) else 0


def test_a_node_whose_name_another_took_ends_at_once(rig: Rig, tmp_path: Path) -> None:
    a, name = rig.map("a"), map_name()
    node = rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    fill(a, range(7), 1)
    until(lambda: "published" in node.map_status(), "the first")
    with NodeProcess(
        "a",
        tmp_path / "elsewhere",
        broker_url=rig.server.url,
        maps=[rig.entry(name, "a", Role.PUBLISH)],
        capture="sweep",
    ) as other:
        other.await_running()
        fill(a, range(100, 117), 1)
        began = time.monotonic()
        code = node.process.wait(DEADLINE_SECONDS)
        assert time.monotonic() - began < 6.0, "it waited for a publisher that has ended"
        assert code != 0
        assert "another" in node.log_path.read_text()
        assert other.process.poll() is None


def test_a_status_that_cannot_be_written_is_told_once_and_the_work_goes_on(rig: Rig) -> None:
    a, b, name = rig.map("a"), rig.map("b"), map_name()
    rig.node("a", rig.entry(name, "a", Role.PUBLISH))
    node = rig.node("b", rig.entry(name, "b", Role.APPLY))
    draft = node.state_directory / ".status.json.new"

    def blocked() -> bool:
        if not draft.exists():
            draft.mkdir()
        return "status cannot be written" in node.log_path.read_text()

    until(blocked, "the word")
    fill(a, range(53), 1)
    until(lambda: content(a) == content(b), "changes")
    draft.rmdir()
    written = node.status_written
    until(lambda: node.status_written > written, "the next status")
    assert node.log_path.read_text().count("status cannot be written") == 1


def test_a_signal_while_it_waits_ends_it(rig: Rig, tmp_path: Path) -> None:
    name = map_name()
    waiting = rig.node("a", rig.entry(name, "a", Role.REPLICATE), ready=False)
    until(lambda: "waiting for the map to appear" in waiting.log_path.read_text(), "the map")
    with ServerThread(tmp_path / "gone") as gone:
        url = gone.url
    alone = rig.node("b", rig.entry(name, "b", Role.REPLICATE), url=url, ready=False)
    until(lambda: url.rpartition(":")[2] in alone.log_path.read_text(), "the broker")
    for node in (waiting, alone):
        node.process.terminate()
        assert node.process.wait(DEADLINE_SECONDS) == 0
        assert "Traceback" not in node.log_path.read_text()
