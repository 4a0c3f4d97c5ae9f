"""What a killed run leaves behind is removed by the next; what lives is left alone."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bridge.demo.topology import Topology
from bridge.demo.tracker import Tracker, entries_for
from bridge.demo.traffic import TrafficError, lanes_needed
from bridge.errors import BridgeError, PrivilegeError, UnavailableError
from bridge.rig import tools
from bridge.rig.claim import LOCK_DIRECTORY, NETNS_DIRECTORY, Claim, reap_leftovers

ROOT = Path(__file__).resolve().parents[2]

# holds everything that a run can hold, says so, and waits to be killed
VICTIM = """
import sys
from bridge.rig.claim import Claim
from bridge.demo.topology import Topology
from bridge.demo.tracker import Tracker
from bridge.demo.traffic import Traffic
with Claim.take() as claim, Topology(claim) as topology, Tracker(claim, 100) as tracker:
    topology.attach(tracker.active.ingress, tracker.active.egress)
    with Traffic(topology, 100) as traffic:
        traffic.open()
        traffic.wait(60)
        print(claim.token, *traffic.process_ids, flush=True)
        sys.stdin.read()
"""


@pytest.fixture
def claim() -> Claim:
    try:
        return Claim.take()
    except PrivilegeError as error:
        pytest.skip(str(error))


def namespaces_of(token: str) -> list[str]:
    return sorted(path.name for path in NETNS_DIRECTORY.glob(f"mapbridge-{token}-*"))


def test_leftovers_of_a_killed_run(claim: Claim) -> None:
    with claim, Topology(claim):
        victim = subprocess.Popen(
            [sys.executable, "-c", VICTIM],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert victim.stdout is not None
        assert victim.stdin is not None
        token, *workers = victim.stdout.readline().split()
        assert len(workers) == 2
        endings = [os.pidfd_open(int(pid)) for pid in workers]
        pins = Path(f"/sys/fs/bpf/mapbridge-demo-{token}")
        assert token not in reap_leftovers()
        assert len(namespaces_of(token)) == 2
        assert (pins / "a" / "maps" / "ct").exists()

        victim.send_signal(signal.SIGKILL)
        victim.wait()
        victim.stdin.close()
        victim.stdout.close()
        # the lanes see the end of their input; a pidfd is readable when its process has ended
        for ending in endings:
            assert readable(ending, 30.0)
            os.close(ending)
        assert len(namespaces_of(token)) == 2
        assert (pins / "a" / "maps" / "ct").exists()

        assert token in reap_leftovers()
        assert namespaces_of(token) == []
        assert not pins.exists()
        assert not (LOCK_DIRECTORY / f"{token}.lock").exists()
        # this run lives
        assert len(namespaces_of(claim.token)) == 2
    assert namespaces_of(claim.token) == []
    assert not (LOCK_DIRECTORY / f"{claim.token}.lock").exists()


def readable(fd: int, seconds_max: float) -> bool:
    poller = select.poll()
    poller.register(fd, select.POLLIN)
    return bool(poller.poll(seconds_max * 1000))


def test_release_removes_what_was_not_closed(claim: Claim) -> None:
    Topology(claim).create()
    Tracker(claim, 10, ("a", "b")).load()
    assert len(namespaces_of(claim.token)) == 2
    claim.release()
    assert namespaces_of(claim.token) == []
    assert not claim.pin_directory.exists()


def test_a_failed_creation_leaves_nothing(claim: Claim) -> None:
    with claim:
        tools.run(["ip", "netns", "add", claim.namespace("server")])
        with pytest.raises(tools.CommandError, match="File exists"):
            Topology(claim).create()
        assert namespaces_of(claim.token) == [claim.namespace("server")]


def test_missing_tools_name_their_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UnavailableError, match=r"tc: not found on PATH \(missing tc, clang\)") as e:
        tools.require_tools("tc", "clang")
    assert e.value.hint == "install clang iproute2 (Debian: apt install clang iproute2)"


def test_missing_capabilities_are_named() -> None:
    """In a process of its own without privileges."""
    if os.geteuid() != 0:
        pytest.skip("needs root to give privileges up")
    script = (
        "import os; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "from bridge.rig.claim import Claim\n"
        "from bridge.errors import PrivilegeError\n"
        "try: Claim.take()\n"
        "except PrivilegeError as error: print(error, error.hint, sep='|')\n"
    )
    # the modules are loaded before the privileges go: a checkout may be readable by root only
    script = "import bridge.rig.claim\n" + script
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == (
        "network namespaces: need CAP_NET_ADMIN and CAP_SYS_ADMIN (got a process without)"
        "|run as root; in a container, with --privileged"
    )


def test_lanes_fit_the_limit_of_descriptors() -> None:
    assert lanes_needed(50_000, 20_000) == 6
    assert lanes_needed(50_000, 1 << 20) == 2
    assert lanes_needed(1, 20_000) == 2
    assert lanes_needed(384, 1024) == 2
    assert lanes_needed(50_000, 1024) == 131
    with pytest.raises(TrafficError, match="too few descriptors"):
        lanes_needed(1, 256)


def test_map_size_leaves_room() -> None:
    assert entries_for(1) == 16_384
    assert entries_for(50_000) == 65_536
    assert entries_for(100_000) == 131_072
    assert issubclass(TrafficError, BridgeError)
