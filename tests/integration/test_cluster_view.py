"""The cluster as its nodes tell it: as micro services, on a node's page, in a terminal."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
import urllib.request

import pytest

from bridge.bus.connection import BusSettings
from bridge.bus.control import ask_all
from bridge.bus.nats_bus import open_bus
from bridge.health.neighbours import SILENT_SECONDS
from bridge.kernel.features import Capability
from bridge.model import Role
from tests.integration.kernel_support import needs
from tests.node_kit import Rig, fill, map_name, mapbridge, until

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_SYS_ADMIN)

LISTEN = '[http]\nlisten = "127.0.0.1:0"\n'


class Pair:
    """Two nodes that bridge one map; the first one serves its page."""

    def __init__(self, rig: Rig) -> None:
        self.name = map_name()
        self.source = rig.map("a")
        rig.map("b")
        self.a = rig.node("a", rig.entry(self.name, "a", Role.REPLICATE), more=LISTEN)
        self.b = rig.node("b", rig.entry(self.name, "b", Role.REPLICATE))
        self.config = str(self.a.config_path)
        found = re.search(r"http://[0-9.:]+", self.a.log_path.read_text())
        assert found is not None
        self.url = found[0]

    def cluster(self) -> dict[str, dict[str, object]]:
        """The nodes that the page shows, by name."""
        with urllib.request.urlopen(f"{self.url}/cluster", timeout=10) as answer:
            told = json.load(answer)
        return {node["node"]: node for node in told["nodes"]}

    def metrics(self) -> str:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            return str(answer.read().decode())


@pytest.fixture
def pair(rig: Rig) -> Pair:
    return Pair(rig)


async def test_nodes_are_micro_services(pair: Pair, rig: Rig) -> None:
    bus = await open_bus(BusSettings("reader", (rig.server.url,)))
    try:
        link = await bus.link()
        for subject in ("$SRV.PING", "$SRV.INFO.mapbridge"):
            answers = await ask_all(link, subject, {}, 2.0)
            nodes = sorted(str(answer["metadata"]["node"]) for answer in answers)  # type: ignore[index]
            assert nodes == ["a", "b"]
        (one, _) = await ask_all(link, "$SRV.PING.mapbridge", {}, 2.0)
        (same,) = await ask_all(link, f"$SRV.PING.mapbridge.{one['id']}", {}, 2.0)
        assert same == one
    finally:
        await bus.close()


def test_a_nodes_page_shows_the_cluster(pair: Pair) -> None:
    fill(pair.source, range(1009), 1)
    until(lambda: set(pair.cluster()) == {"a", "b"}, "both nodes")

    def counted() -> bool:
        a, b = (pair.cluster()[node]["maps"][pair.name] for node in "ab")  # type: ignore[index]
        return bool(a["published"] == b["applied"] == 1009 and a["synced"] and b["synced"])

    until(counted, "the changes are counted on both nodes")
    with urllib.request.urlopen(f"{pair.url}/", timeout=10) as answer:
        assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        assert b"<title>mapbridge</title>" in answer.read()

    pair.b.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: float(str(pair.cluster()["b"]["silent_seconds"])) > SILENT_SECONDS, "silence")
        assert float(str(pair.cluster()["a"]["silent_seconds"])) < SILENT_SECONDS
    finally:
        pair.b.process.send_signal(signal.SIGCONT)


def test_top_prints_one_look(pair: Pair) -> None:
    shown = mapbridge("top", "--once", "-c", pair.config)
    assert shown.returncode == 0, shown.stderr
    assert "cluster demo   2 nodes   2 of 2 replicas synced" in shown.stdout
    told = mapbridge("top", "--once", "--json", "-c", pair.config)
    assert [node["node"] for node in json.loads(told.stdout)["nodes"]] == ["a", "b"]
    refused = mapbridge("top", "-c", pair.config)
    assert refused.returncode == 1
    assert "Try: `mapbridge top --once`" in refused.stderr


def test_top_in_a_terminal(pair: Pair) -> None:
    master, terminal = pty.openpty()
    command = [sys.executable, "-m", "bridge.cli.main", "top", "-c", pair.config]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        command, stdin=terminal, stdout=terminal, stderr=terminal, env=environment
    )
    os.close(terminal)
    seen = ""

    def appears(text: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 30
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([master], [], [], 0.2)[0]:
                seen += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(master, 65536).decode())

    try:
        appears("s sort (by map)")
        assert "2 of 2 replicas synced" in seen
        os.write(master, b"s")
        appears("s sort (by node)")
        os.write(master, b"p")
        appears("held")
        os.write(master, b"q")
        assert process.wait(15) == 0
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_status_of_all_nodes_with_drift_and_a_silent_one(pair: Pair) -> None:
    config = ["-c", pair.config]
    fill(pair.source, range(53), 1)

    def rows() -> list[dict[str, object]]:
        return list(json.loads(mapbridge("status", "--nodes", *config, "--json").stdout)["nodes"])

    until(lambda: [row["applied"] for row in rows()] == [0, 53], "the entries")
    assert [(row["node"], row["answers"], row["verified"]) for row in rows()] == [
        ("a", True, None),
        ("b", True, None),
    ]
    assert "mapbridge_verify_drift_keys{" not in pair.metrics()
    assert mapbridge("verify", pair.name, *config).returncode == 0
    until(
        lambda: all(row["verified"] and row["verified"]["drift"] == 0 for row in rows()),  # type: ignore[index]
        "what the comparison found",
    )
    metrics = pair.metrics()
    assert f'mapbridge_verify_drift_keys{{map="{pair.name}"}} 0.0' in metrics
    assert f'mapbridge_verify_timestamp_seconds{{map="{pair.name}"}} 1' in metrics
    pair.b.process.kill()
    pair.b.process.wait()
    told = mapbridge("status", "--nodes", *config)
    assert f"map {pair.name} on b: the node is on the board" in told.stdout
    lines = [row.split() for row in told.stdout.splitlines() if row.startswith(f"{pair.name} ")]
    assert [(line[1], *line[3:5]) for line in lines] == [
        ("a", "running", "yes"),
        ("b", "silent", "no"),
    ], told.stdout
