"""Messages to systemd through a real socket, and the unit that asks for them."""

from __future__ import annotations

import asyncio
import configparser
import secrets
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.config import parse
from bridge.errors import Exit
from bridge.health.notify import Notifier
from bridge.node import health
from bridge.node.health import Health
from bridge.node.report import LogReport

UNIT = Path(__file__).resolve().parents[2] / "deploy" / "systemd" / "mapbridge.service"
CONFIG = parse('[node]\nname = "a"\n[[maps]]\nname = "ct"\npin = "/sys/fs/bpf/ct"\n')


class Supervisor:
    """The other end of the socket."""

    def __init__(self, address: str) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind("\0" + address[1:] if address.startswith("@") else address)
        self.socket.setblocking(False)
        self.environment = {"NOTIFY_SOCKET": address}

    def told(self) -> list[str]:
        """What came since the last call."""
        found = []
        while True:
            try:
                found.append(self.socket.recv(4096).decode())
            except BlockingIOError:
                return found


@pytest.fixture(params=["path", "abstract"])
def supervisor(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Supervisor]:
    abstract = request.param == "abstract"
    made = Supervisor(f"@mapbridge-{secrets.token_hex(8)}" if abstract else f"{tmp_path}/notify")
    yield made
    made.socket.close()


def document(state: str, *, synced: bool) -> dict[str, object]:
    return {"broker": {"connected": True}, "maps": {"ct": {"state": state, "synced": synced}}}


def test_messages_are_those_of_sd_notify(supervisor: Supervisor) -> None:
    notifier = Notifier(supervisor.environment)
    notifier.status("two\nlines")
    notifier.ready("all is well")
    notifier.watchdog()
    notifier.extend(1.5)
    notifier.stopping("ends")
    notifier.close()
    notifier.watchdog()
    assert supervisor.told() == [
        "STATUS=two lines",
        "READY=1\nSTATUS=all is well",
        "WATCHDOG=1",
        "EXTEND_TIMEOUT_USEC=1500000",
        "STOPPING=1\nSTATUS=ends",
    ]
    assert notifier.lost == 0


@pytest.mark.parametrize("address", ["", "relative", "/nowhere/notify", "vsock:2:1234"])
def test_without_a_supervisor_nothing_is_sent(address: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": address})
    notifier.ready("x")
    assert not notifier.active
    assert notifier.lost == (1 if address.startswith("/") else 0)


def test_a_supervisor_that_does_not_read_holds_nothing_up(supervisor: Supervisor) -> None:
    notifier = Notifier(supervisor.environment)
    sent = 0
    while not notifier.lost:
        notifier.watchdog()
        sent += 1
        assert sent < 100_000, "the queue of a socket has an end"
    assert len(supervisor.told()) == sent - 1
    notifier.watchdog()
    assert supervisor.told() == ["WATCHDOG=1"]
    notifier.close()


async def test_ready_once_and_watched_only_by_who_looked(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", supervisor.environment["NOTIFY_SOCKET"])
    monkeypatch.setattr(health, "BEAT_SECONDS", 0.01)
    async with Health(CONFIG, LogReport(), lambda: None) as told:
        told.step("joining the maps")
        told.tell({"broker": {"connected": True}, "maps": {}})
        told.tell(document("joining", synced=False))
        await asyncio.sleep(0.03)
        start = supervisor.told()
        assert "STATUS=joining the maps" in start
        assert "EXTEND_TIMEOUT_USEC=60000000" in start
        assert not any("READY" in one or "WATCHDOG" in one for one in start)
        told.tell(document("waiting", synced=False))
        told.tell(document("running", synced=True))
        assert supervisor.told() == [
            "READY=1\nSTATUS=0 of 1 maps synced, 1 waiting",
            "WATCHDOG=1",
            "STATUS=1 of 1 maps synced",
            "WATCHDOG=1",
        ]
        # The event loop turns, but nobody has looked at the threads.
        await asyncio.sleep(0.05)
        assert supervisor.told() == []
        told.stopping()
        told.tell(document("running", synced=True))
        assert supervisor.told() == ["STOPPING=1\nSTATUS=stopping: what was captured goes out"]


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    parser.read_string(UNIT.read_text())
    return parser["Service"]


def test_the_unit_does_not_try_again_what_cannot_mend_itself() -> None:
    service = unit()
    assert service["RestartPreventExitStatus"].split() == [str(int(e)) for e in (77, 78)]
    assert (Exit.PRIVILEGE, Exit.CONFIG) == (77, 78)
    assert service["Type"] == "notify"
    assert service["CapabilityBoundingSet"] == service["AmbientCapabilities"]
    assert {"CAP_BPF", "CAP_PERFMON"} <= set(service["CapabilityBoundingSet"].split())


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze here")
def test_systemd_has_no_complaint_about_the_unit(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    # Whether the command is installed on this machine is not the question.
    copy.write_text(UNIT.read_text().replace("=/usr/bin/mapbridge", "=/bin/true"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copy)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
