"""keepalived in a router's namespace, with the configuration and the script that users get.

``deploy/keepalived/keepalived.conf`` is taken as it stands; only what its head tells users to
change is changed, and the paths.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType

from bridge.demo.routers import BACK, BACK_GATEWAY, FRONT, FRONT_GATEWAY
from bridge.demo.topology import command_inside
from bridge.errors import InvariantError
from bridge.resources import keepalived_file
from bridge.rig import tools

SCRIPT = "check-mapbridge.sh"
PRIORITIES = (150, 100)
STOP_SECONDS_MAX = 10.0


class Gate:
    """The check script of one node: ``ask`` runs it as keepalived does."""

    def __init__(self, directory: Path, config: Path) -> None:
        command = directory / "mapbridge"
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m bridge.cli.main "$@"\n')
        self.path = directory / SCRIPT
        self.path.write_text(
            f'#!/bin/sh\nexport MAPBRIDGE="{command}" MAPBRIDGE_CONFIG="{config}"\n'
            f'exec "{keepalived_file(SCRIPT)}" "$@"\n'
        )
        for path in (command, self.path):
            path.chmod(0o755)

    def ask(self) -> int:
        """The exit code; 0: the node's maps are synced."""
        return subprocess.run([self.path, "synced"], capture_output=True, check=False).returncode


class Keepalived:
    """Runs between enter and ``stop``; the log is in the node's directory."""

    def __init__(self, namespace: str, directory: Path, gate: Gate, priority: int) -> None:
        tools.require_tools("keepalived")
        self._config = directory / "keepalived.conf"
        self._config.write_text(
            _adapt(keepalived_file("keepalived.conf").read_text(), gate, priority)
        )
        pids = [
            argument
            for option, name in (("-p", "keepalived"), ("-r", "vrrp"), ("-c", "checkers"))
            for argument in (option, str(directory / f"{name}.pid"))
        ]
        command = ["keepalived", "-n", "-l", "-f", str(self._config), *pids]
        self.log_path = directory / "keepalived.log"
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command_inside(namespace, *command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def stop(self, *, kill: bool = False) -> None:
        """``kill``: as when the machine is lost, no word to the others."""
        if self._process.poll() is not None:
            return
        if kill:
            process = self._process.pid
            children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
            # The child first: one that sees its parent end says goodbye to the others.
            for killed in (*map(int, children), process):
                os.kill(killed, signal.SIGKILL)
            self._process.wait(STOP_SECONDS_MAX)
        else:
            tools.end(self._process, STOP_SECONDS_MAX)

    def __enter__(self) -> Keepalived:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _adapt(text: str, gate: Gate, priority: int) -> str:
    changes = {
        "192.0.2.1/24 dev eth0": f"{FRONT_GATEWAY}/24 dev {FRONT}",
        "198.51.100.1/24 dev eth1": f"{BACK_GATEWAY}/24 dev {BACK}",
        "interface eth0": f"interface {FRONT}",
        "joined 192.0.2.1": f"joined {FRONT_GATEWAY}",
        f"/etc/keepalived/{SCRIPT}": str(gate.path),
        f"priority {PRIORITIES[0]}": f"priority {priority}",
    }
    for old, new in changes.items():
        if old not in text:
            raise InvariantError(f"keepalived.conf: has no {old!r}")
        text = text.replace(old, new)
    return text
