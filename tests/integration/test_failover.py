"""A node is lost with its sessions: the demonstration of it, and the files that come with it."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.demo.keepalived import Gate
from bridge.demo.routers import BACK, BACK_GATEWAY, FRONT, FRONT_GATEWAY, PREFIX, Routers
from bridge.demo.topology import command_inside
from bridge.demo.tracker import Tracker
from bridge.demo.traffic import Traffic, TrafficError
from bridge.errors import Exit
from bridge.kernel.features import Capability
from bridge.resources import keepalived_file
from bridge.rig import tools
from bridge.rig.claim import Claim
from tests.integration.kernel_support import needs
from tests.integration.test_demo import last_line

pytestmark = needs(Capability.CAP_SYS_ADMIN)

SESSIONS = 211
MORE = 21
SECONDS_MAX = 60.0


@pytest.fixture
def claim() -> Iterator[Claim]:
    with Claim.take() as claim:
        yield claim


@pytest.mark.timeout(240)
@pytest.mark.parametrize("failure", ["host", "reboot"])
def test_no_router_takes_over_without_the_state(failure: str) -> None:
    arguments = ("demo", "--fail", failure, "--sessions", str(SESSIONS), "--json")
    answer = last_line(*arguments, seconds_max=220)
    assert (answer["sessions_lost_with_a"], answer["answered_by_b"]) == (SESSIONS, SESSIONS)
    assert (answer["sessions"], answer["answered_by_a"]) == (SESSIONS + MORE, SESSIONS + MORE)
    differences = ("missing", "wrong", "extra")
    assert [answer[f"at_takeover_{key}"] for key in differences] == [0, 0, 0]
    assert [answer[key] for key in (*differences, "left")] == [0, 0, 0, 0]
    answers = answer["answers"]
    assert isinstance(answers, list)
    codes = [one["exit_code"] for one in answers]
    assert codes[0] == Exit.UNAVAILABLE, "the new node was let take over before its bridge ran"
    assert codes[-1] == 0
    assert isinstance(answer["return_seconds"], float)


def test_a_router_without_the_state_breaks_every_session(claim: Claim) -> None:
    """What the gate is there for; the demonstration's answers would show it."""
    with (
        Routers(claim, ("a", "b")) as routers,
        Tracker(claim, SESSIONS, ["a"], strict=True) as old,
        Tracker(claim, SESSIONS, ["b"], strict=True) as empty,
        Traffic(routers, SESSIONS) as traffic,
    ):
        routers.add("a", old.active)
        _give_addresses(routers, "a")
        traffic.open()
        traffic.wait(SECONDS_MAX)
        traffic.talk()
        assert traffic.wait(SECONDS_MAX).answers == SESSIONS
        routers.lose("a")
        routers.add("b", empty.active)
        _give_addresses(routers, "b")
        traffic.talk()
        with pytest.raises(TrafficError, match="answers"):
            traffic.wait(4.0)
        assert traffic.progress().answers == SESSIONS


def _give_addresses(routers: Routers, name: str) -> None:
    for address, device in ((FRONT_GATEWAY, FRONT), (BACK_GATEWAY, BACK)):
        add = ["addr", "add", f"{address}/{PREFIX}", "dev", device]
        tools.run(["ip", "-n", routers.namespace(name), *add])
    for side in (routers.client_namespace, routers.server_namespace):
        tools.run(["ip", "-n", side, "neigh", "flush", "nud", "all"])


def test_keepalived_takes_the_example(claim: Claim, tmp_path: Path) -> None:
    namespace = claim.namespace("check")
    tools.run(["ip", "netns", "add", namespace])
    for device in ("eth0", "eth1"):
        other = [f"{device}-end", "netns", namespace]
        add = ["link", "add", device, "type", "veth", "peer", "name", *other]
        tools.run(["ip", "-n", namespace, *add])
    text = keepalived_file("keepalived.conf").read_text()
    script = str(keepalived_file("check-mapbridge.sh"))
    assert _complaints(namespace, text, script, tmp_path) == []
    wrong = text.replace("track_script", "track_scripts")
    assert _complaints(namespace, wrong, script, tmp_path)


def _complaints(namespace: str, text: str, script: str, directory: Path) -> list[str]:
    """What `keepalived -t` says of the example with the script where it is here."""
    path = directory / "keepalived.conf"
    path.write_text(text.replace("/etc/keepalived/check-mapbridge.sh", script))
    command = command_inside(namespace, "keepalived", "-t", "-f", str(path))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stdout + done.stderr).splitlines()
    return said or ([f"exit code {done.returncode}"] if done.returncode else [])


def test_the_script_passes_on_what_the_bridge_says(tmp_path: Path) -> None:
    config = tmp_path / "mapbridge.toml"
    config.write_text(
        f'[node]\nname = "a"\nstate_dir = "{tmp_path / "state"}"\n'
        '[[maps]]\nname = "ct"\npin = "/sys/fs/bpf/none"\n'
    )
    gate = Gate(tmp_path, config)
    assert gate.ask() == Exit.UNAVAILABLE
    assert _joined(gate, "127.0.0.1") == 0, "who has the address keeps it"
    assert _joined(gate, "192.0.2.1") == Exit.UNAVAILABLE
    wrong = subprocess.run([gate.path, "sync"], capture_output=True, text=True, check=False)
    assert wrong.returncode == Exit.USAGE
    assert "usage: " in wrong.stderr
    config.write_text("[nodes]\n")
    assert gate.ask() == Exit.CONFIG


def _joined(gate: Gate, address: str) -> int:
    command = [str(gate.path), "joined", address]
    return subprocess.run(command, capture_output=True, check=False).returncode
