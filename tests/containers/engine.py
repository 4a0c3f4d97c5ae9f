"""Docker or podman, whichever is here, and how it must be called on this machine."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMMAND_SECONDS_MAX = 120.0


class EngineError(Exception):
    """A command of the engine failed; the message holds its last words."""


class Engine:
    """``docker`` where its daemon answers, else ``podman``."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name = name
        self.environment = {**os.environ, **environment}

    def try_run(
        self,
        *arguments: str,
        seconds_max: float = COMMAND_SECONDS_MAX,
        text: str | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return self.run_tool([self.name, *arguments], seconds_max=seconds_max, text=text)

    def run(
        self,
        *arguments: str,
        seconds_max: float = COMMAND_SECONDS_MAX,
        text: str | None = None,
    ) -> str:
        done = self.try_run(*arguments, seconds_max=seconds_max, text=text)
        if done.returncode:
            raise EngineError(f"{self.name} {' '.join(arguments)}: {_end(done.stderr)}")
        return done.stdout

    def run_tool(
        self, command: Sequence[str], *, seconds_max: float, text: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            env=self.environment,
            input=text,
            stdin=subprocess.DEVNULL if text is None else None,
            capture_output=True,
            text=True,
            timeout=seconds_max,
            check=False,
        )

    def has_image(self, name: str) -> bool:
        return self.try_run("image", "inspect", name).returncode == 0

    def build(self, *arguments: str, context: Path = ROOT, text: str | None = None) -> None:
        """Shows what the build says. ``text``: a Dockerfile in place of the checkout's."""
        more = ["--isolation", "chroot", "--network", "host", "--format", "docker"]
        command = [self.name, "build", *(more if self.name == "podman" else ()), *arguments]
        command += ["-f", "-", str(context)] if text is not None else [str(context)]
        done = subprocess.run(
            command, env=self.environment, input=text, text=True, timeout=1_800, check=False
        )
        if done.returncode:
            raise EngineError(f"{' '.join(command)}: exit code {done.returncode}")

    def compose_command(self) -> list[str]:
        if self.name == "docker":
            return ["docker", "compose"]
        found = shutil.which("podman-compose", path=f"{ROOT}/.venv/bin:{os.environ['PATH']}")
        if found is None:
            raise EngineError("podman-compose: not found (pip install podman-compose)")
        return [found]


@contextmanager
def find_engine() -> Iterator[Engine]:
    """Raises ``EngineError`` when neither is here."""
    asked = ["docker", "info", "--format", "{{.ServerVersion}}"]
    if shutil.which("docker") and _answers(asked):
        yield Engine("docker", {})
        return
    if shutil.which("podman") is None:
        raise EngineError("neither a Docker engine nor podman is here (apt install podman)")
    with tempfile.TemporaryDirectory() as directory:
        yield Engine("podman", _podman_settings(Path(directory)))


def _podman_settings(directory: Path) -> dict[str, str]:
    """Without systemd there is nobody to make cgroups and timers; limits cannot be raised."""
    if Path("/run/systemd/system").is_dir():
        return {}
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    _, processes = resource.getrlimit(resource.RLIMIT_NPROC)
    runtime = "runc" if shutil.which("runc") else "crun"
    path = directory / "containers.conf"
    path.write_text(
        f'[engine]\nruntime = "{runtime}"\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\n'
        f"[containers]\ndefault_ulimits = {_limits(files, processes)}\n"
    )
    return {"CONTAINERS_CONF": str(path)}


def _limits(files: int, processes: int) -> str:
    unlimited = resource.RLIM_INFINITY
    found = {"nofile": min(files, 20_000) if files != unlimited else 20_000}
    found["nproc"] = min(processes, 10_000) if processes != unlimited else 10_000
    return "[" + ", ".join(f'"{name}={count}:{count}"' for name, count in found.items()) + "]"


def _answers(command: Sequence[str]) -> bool:
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0


def _end(said: str) -> str:
    """Without what podman says for want of systemd."""
    lines = [line for line in said.strip().splitlines() if "systemd" not in line]
    return " / ".join(lines[-4:]) or "no message"
