"""Bridges as real processes: each with a configuration file and a state directory of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from bridge.errors import BridgeError
from bridge.model import Role
from bridge.node.instance import read_status

START_SECONDS_MAX = 240.0  # a probe program compiles for a minute where the machine is emulated
STOP_SECONDS_MAX = 30.0
POLL_SECONDS = 0.05
LOG_LINES_SHOWN = 5


class NodeFailedError(BridgeError):
    """A bridge that was started here ended, or did not get ready in time."""


class NodeProcess:
    """``mapbridge run`` for one node with one map, selected by its pin."""

    def __init__(
        self,
        name: str,
        directory: Path,
        *,
        broker_url: str,
        pin: Path,
        role: Role,
        map_name: str = "ct",
        capture: str = "auto",
        emit: tuple[Path, Path] | None = None,  # pins of the ring and of the loss counter
    ) -> None:
        self.name = name
        self.map_name = map_name
        self.state_directory = directory / name
        self.state_directory.mkdir(parents=True)
        self._log_path = self.state_directory / "log"
        emitting = f'emit = "{emit[0]}"\nemit_losses = "{emit[1]}"\n' if emit else ""
        config = self.state_directory / "mapbridge.toml"
        config.write_text(
            f'[node]\nname = "{name}"\ncluster = "demo"\nstate_dir = "{self.state_directory}"\n\n'
            f'[broker]\nurl = "{broker_url}"\n\n'
            f'[capture]\nmode = "{capture}"\n\n'
            f'[[maps]]\nname = "{map_name}"\npin = "{pin}"\nrole = "{role}"\n{emitting}'
        )
        with self._log_path.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bridge.cli.main", "run", "-c", str(config), "--json"],
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
        return read_status(self.state_directory) or {}

    def map_status(self) -> dict[str, object]:
        maps = self.status().get("maps")
        found = maps.get(self.map_name) if isinstance(maps, dict) else None
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
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

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

    def stop(self) -> None:
        """SIGTERM, and after a while SIGKILL."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_SECONDS_MAX)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _last_lines(self) -> str:
        lines = self._log_path.read_text(errors="replace").splitlines()
        return " / ".join(lines[-LOG_LINES_SHOWN:]) or "none"
