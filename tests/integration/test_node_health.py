"""A running node's HTTP paths, and what it tells systemd."""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import time
from pathlib import Path

import orjson
import pytest

from bridge.health.metrics import SPECS
from bridge.kernel.features import Capability
from bridge.model import Role
from bridge.rig.broker import ServerThread
from tests.integration.kernel_support import needs
from tests.node_kit import Rig, content, fill, map_name, mapbridge, until

pytestmark = [needs(Capability.CAP_SYS_ADMIN), pytest.mark.own_server]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("mapbridge", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


def get(path: Path, target: str) -> tuple[int, bytes]:
    connection = UnixConnection(path)
    try:
        connection.request("GET", target)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def reasons(path: Path, target: str = "/readyz") -> list[str]:
    status, body = get(path, target)
    found = orjson.loads(body)
    assert found["ready"] == (status == 200)
    return list(found["reasons"])


def test_every_path_of_a_running_node(rig: Rig, tmp_path: Path) -> None:
    a, b, name, late = rig.map("a"), rig.map("b"), map_name(), map_name()
    path = tmp_path / "http.sock"
    rig.node("b", rig.entry(name, "b", Role.REPLICATE))
    node = rig.node(
        "a",
        rig.entry(name, "a", Role.REPLICATE),
        rig.entry(late, "late", Role.REPLICATE),
        more=f'[http]\nlisten = "unix:{path}"\n',
    )
    fill(b, range(53), 1)
    until(lambda: content(a) == content(b), "the entries")
    until(lambda: get(path, f"/readyz?map={name}&lag=5s")[0] == 200, "one map is ready")
    assert reasons(path) == [f"map {late}: the kernel has no such map yet"]
    rig.map("late")
    until(lambda: get(path, "/readyz")[0] == 200, "both are ready")
    assert get(path, "/livez")[0] == 200

    status = orjson.loads(get(path, "/status")[1])
    told = orjson.loads(mapbridge("status", "-c", str(node.config_path), "--json").stdout)
    assert status.keys() == told.keys()
    assert status["maps"].keys() == {name, late}
    assert mapbridge("verify", name, "-c", str(node.config_path)).returncode == 0
    until(lambda: b"verify_drift_keys{" in get(path, "/metrics")[1], "the verdict")
    metrics = get(path, "/metrics")[1].decode()
    assert f'mapbridge_apply_deltas_total{{map="{name}",result="updated"}} 53.0' in metrics
    assert f'mapbridge_map_synced{{map="{name}"}} 1.0' in metrics
    without = [one.full_name for one in SPECS if f"\n{one.full_name}" not in metrics]
    assert without == [], "metrics that a running node has no samples of"
    node.stop()
    assert not path.exists()


def test_a_node_without_its_broker_is_alive_and_not_ready(rig: Rig, tmp_path: Path) -> None:
    name, path = map_name(), tmp_path / "http.sock"
    rig.map("a")
    with ServerThread(tmp_path / "other") as server:
        rig.node(
            "a",
            rig.entry(name, "a", Role.REPLICATE),
            url=server.url,
            more=f'[http]\nlisten = "unix:{path}"\n',
        )
        until(lambda: get(path, "/readyz")[0] == 200, "ready")
    until(lambda: get(path, "/readyz")[0] == 503, "not ready")
    assert reasons(path)[0].startswith(f"map {name}: the broker is away")
    assert get(path, "/livez")[0] == 200
    assert b"mapbridge_nats_connected 0.0" in get(path, "/metrics")[1]


def test_an_address_that_cannot_be_had_ends_the_start(rig: Rig, tmp_path: Path) -> None:
    rig.map("a")
    entry = rig.entry(map_name(), "a", Role.REPLICATE)
    more = f'[http]\nlisten = "unix:{tmp_path}/nowhere/http.sock"\n'
    node = rig.node("a", entry, more=more, ready=False)
    assert node.process.wait(20) == 1
    assert "http.listen: cannot listen there, no such file or directory" in (
        node.log_path.read_text()
    )


def test_what_systemd_is_told(rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    rig.map("a")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as supervisor:
        supervisor.bind(str(tmp_path / "notify"))
        supervisor.settimeout(20)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        node = rig.node("a", rig.entry(map_name(), "a", Role.REPLICATE), ready=False)

        def await_line(wanted: str) -> None:
            deadline = time.monotonic() + 20
            while not any(line.startswith(wanted) for one in told for line in one.split("\n")):
                assert time.monotonic() < deadline, f"not told in time: {wanted} (told {told})"
                told.append(supervisor.recv(4096).decode())

        for step in ("attaching the probes", "connecting to the broker", "joining the maps"):
            await_line(f"STATUS={step}")
        await_line("READY=1")
        assert not any("WATCHDOG=1" in one for one in told), "before it was ready"
        await_line("WATCHDOG=1")
        await_line("STATUS=1 of 1 maps synced")
        told.clear()
        node.process.send_signal(signal.SIGHUP)
        await_line("RELOADING=1")
        await_line("READY=1")
        assert any("MONOTONIC_USEC=" in one for one in told)
        node.process.send_signal(signal.SIGTERM)
        await_line("STOPPING=1")
        assert node.process.wait(20) == 0


@pytest.mark.parametrize("asked", ["unix", "tcp", "file"])
def test_a_container_engine_is_told_whether_the_bridge_lives(
    rig: Rig, tmp_path: Path, asked: str
) -> None:
    """Over a Unix socket, over TCP, by the status file; while it hangs, and when it is gone."""
    name, path = map_name(), tmp_path / "http.sock"
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listen = {"unix": f"unix:{path}", "tcp": f"0.0.0.0:{port}"}.get(asked)
    rig.map("a")
    more = f'[http]\nlisten = "{listen}"\n' if listen else ""
    node = rig.node("a", rig.entry(name, "a", Role.REPLICATE), more=more)
    config = ["-c", str(node.config_path), "--alive"]

    def alive() -> subprocess.CompletedProcess[str]:
        return mapbridge("status", *config)

    until(lambda: alive().returncode == 0, "alive")
    assert alive().stdout.startswith("alive, running")
    node.process.send_signal(signal.SIGSTOP)
    try:
        until(lambda: alive().returncode == 69, "seen to hang")
    finally:
        node.process.send_signal(signal.SIGCONT)
    until(lambda: alive().returncode == 0, "alive again")
    node.stop()
    gone = alive()
    assert gone.returncode == 69
    assert gone.stderr.startswith("Error: bridge at" if listen else "Error: state directory")
