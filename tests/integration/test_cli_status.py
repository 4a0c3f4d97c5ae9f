"""``mapbridge status`` against a bridge that runs, hangs, or is not there."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.cli.status import STALE_SECONDS
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim
from tests.node_kit import Rig, fill, map_name, mapbridge, until


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with Claim.take() as claim, ServerThread(tmp_path / "nats") as server:
        claim.pin_directory.mkdir(parents=True)
        made = Rig(tmp_path, claim.pin_directory, server)
        try:
            yield made
        finally:
            made.close()


def test_a_script_can_wait_for_a_map(rig: Rig) -> None:
    name = map_name()
    a, b = rig.map("a"), rig.map("b")
    fill(a, range(1, 5_000), 7)
    source = rig.node("a", rig.entry(name, "a", Role.REPLICATE))
    late = rig.node("b", rig.entry(name, "b", Role.REPLICATE), ready=False)
    config = ["-c", str(late.config_path)]
    done = mapbridge("status", *config, "--wait-synced", name, "--timeout", "60s")
    assert done.returncode == 0, done.stderr
    assert b.count() == 4_999, "said before it was true"
    assert f"{name}  replicate  running  yes" in done.stdout
    asked = mapbridge("status", *config, "--wait-synced", "all", "--timeout", "0", "--json")
    assert json.loads(asked.stdout)["maps"][name]["synced"] is True

    wrong = mapbridge("status", *config, "--wait-synced", "nothing")
    assert wrong.returncode == 2
    assert f"nothing is no map of {late.config_path} (maps: {name})" in wrong.stderr

    late.process.send_signal(signal.SIGSTOP)
    try:
        time.sleep(STALE_SECONDS + 1)
        hangs = mapbridge("status", *config, "--wait-synced", name, "--timeout", "0")
    finally:
        late.process.send_signal(signal.SIGCONT)
    assert hangs.returncode == 69
    assert "has said nothing for" in hangs.stderr
    late.process.kill()
    late.process.wait()
    assert (late.state_directory / "status.json").exists(), "a killed process tidies up nothing"
    killed = mapbridge("status", *config, "--wait-synced", name, "--timeout", "0")
    assert killed.returncode == 69
    assert "no bridge runs here" in killed.stderr
    gone = mapbridge("status", *config, "--wait-synced", name, "--timeout", "0.2", "--json")
    assert gone.returncode == 69
    assert "no bridge runs here" in json.loads(gone.stderr)["error"]["message"]
    assert source.map_status()["synced"] is True


def test_a_node_without_its_broker_is_not_synced(rig: Rig, tmp_path: Path) -> None:
    name = map_name()
    rig.map("a")
    with ServerThread(tmp_path / "other") as server:
        node = rig.node("a", rig.entry(name, "a", Role.REPLICATE), url=server.url)
        until(lambda: node.map_status()["synced"] is True, "synced")
    until(lambda: node.map_status()["synced"] is False, "not synced")
    config = ["-c", str(node.config_path)]
    done = mapbridge("status", *config, "--wait-synced", name, "--timeout", "1")
    assert done.returncode == 75
    assert f"Error: map {name}: not synced (state running" in done.stderr
    assert "broker AWAY" in mapbridge("status", *config).stdout
