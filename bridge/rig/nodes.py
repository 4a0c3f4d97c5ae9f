"""Bridges as real processes: each with a configuration file and a state directory of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from bridge.errors import BridgeError
from bridge.model import Role
from bridge.node.instance import read_status
from bridge.rig import tools

START_SECONDS_MAX = 240.0  # a probe program compiles for a minute where the machine is emulated
STOP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.05
CLUSTER = "demo"
LOG_LINES_SHOWN = 5


class NodeFailedError(BridgeError):
    """A bridge that was started here ended, or did not get ready in time."""


@dataclass(frozen=True, slots=True)
class MapEntry:
    """A ``[[maps]]`` table. ``emit``: pins of the ring and of the loss counter; ``more``: lines.

    ``kernel_name`` selects the map instead of ``pin``.
    """

    name: str
    pin: Path
    role: Role
    emit: tuple[Path, Path] | None = None
    kernel_name: str = ""
    more: tuple[str, ...] = ()

    def toml(self) -> str:
        lines = [
            "[[maps]]",
            f'name = "{self.name}"',
            f'map = "{self.kernel_name}"' if self.kernel_name else f'pin = "{self.pin}"',
            f'role = "{self.role}"',
        ]
        if self.emit is not None:
            lines += [f'emit = "{self.emit[0]}"', f'emit_losses = "{self.emit[1]}"']
        return "\n".join([*lines, *self.more, ""])


def cpu_seconds(pid: int) -> float:
    """Processor time that a process has used, in steps of the kernel's clock tick."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class NodeProcess:
    """``mapbridge run`` for one node. The first of its maps is the one that it is asked about.

    ``more``: further tables of its configuration.
    """

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        broker_url: str,
        maps: Sequence[MapEntry],
        capture: str = "auto",
        transport: str = "auto",
        replicas: int = 1,
        storage: str = "file",
        more: str = "",
        before: Sequence[str] = (),
        options: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.map_name = maps[0].name
        self.state_directory = directory / name
        self.state_directory.mkdir(parents=True, exist_ok=True)
        self.log_path = self.state_directory / "log"
        self.config_path = self.state_directory / "mapbridge.toml"
        self._tables = (
            f'[node]\nname = "{name}"\ncluster = "{CLUSTER}"\n'
            f'state_dir = "{self.state_directory}"\n\n'
            f'[broker]\nurl = "{broker_url}"\nreplicas = {replicas}\n'
            f'storage = "{storage}"\n\n'
            f'[capture]\nmode = "{capture}"\ntransport = "{transport}"\n\n{more}\n'
        )
        self._write_config(maps)
        # What stands before it must become it, such as `unshare` without a fork.
        command = [*before, sys.executable, "-m", "bridge.cli.main"]
        command += ["run", "-c", str(self.config_path)]
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, "--json", *options],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    def status(self) -> dict[str, object]:
        """The node's own ``status.json``; empty until it has written one."""
        if self.process.poll() is not None:
            raise NodeFailedError(
                f"node {self.name}: ended with exit code {self.process.returncode}",
                hint=f"its last lines: {self._last_lines()}",
            )
        status = read_status(self.state_directory) or {}
        # A process that was killed before it in the same directory may have left its last word.
        return status if status.get("process") == self.process.pid else {}

    def map_status(self, name: str | None = None) -> dict[str, object]:
        """What it says of a map, the first one by default; empty for one that it does not have."""
        maps = self.status().get("maps")
        found = maps.get(name or self.map_name) if isinstance(maps, dict) else None
        return found if isinstance(found, dict) else {}

    @property
    def status_written(self) -> float:
        """When the node wrote its status, seconds since 1970; 0: not yet."""
        written = self.status().get("written")
        return written if isinstance(written, float) else 0.0

    def applied(self, counter: str) -> float:
        """A counter of what the node has applied to its map."""
        found = self.map_status().get("apply")
        return float(found.get(counter) or 0) if isinstance(found, dict) else 0.0

    def cpu_seconds(self) -> float:
        """Processor time that the process has used, all its threads together."""
        return cpu_seconds(self.process.pid)

    @property
    def capture_mode(self) -> str:
        capture = self.status().get("capture")
        return str(capture.get("mode", "none")) if isinstance(capture, dict) else "none"

    def await_running(self) -> None:
        """Wait until the map is open, the probes are proved and the stream has been read."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while self.map_status().get("state") != "running":
            if time.monotonic() > deadline:
                raise NodeFailedError(
                    f"node {self.name}: not ready in {START_SECONDS_MAX:.0f} s",
                    hint=f"its last lines: {self._last_lines()}",
                )
            time.sleep(POLL_SECONDS)

    def reload(self, maps: Sequence[MapEntry]) -> None:
        """Have it read a configuration with these maps; returns at once."""
        self._write_config(maps)
        self.process.send_signal(signal.SIGHUP)

    def stop(self) -> None:
        """SIGTERM, and after a while SIGKILL."""
        tools.end(self.process, STOP_SECONDS_MAX)

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _write_config(self, maps: Sequence[MapEntry]) -> None:
        self.config_path.write_text(self._tables + "\n".join(entry.toml() for entry in maps))

    def _last_lines(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return " / ".join(lines[-LOG_LINES_SHOWN:]) or "none"
