"""Names that belong to one run, and removal of what killed runs left behind.

Each run takes a random token and holds a lock on a file with that name for as long as it lives. The
kernel drops the lock with the process, however it ends, so a lock file that can be locked belongs
to a dead run: its namespaces and pins are removed by the next run. Nothing without a lock file is
ever touched, and process ids, which a container sees differently, play no role.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType

from bridge.rig import tools

LOCK_DIRECTORY = Path("/run/mapbridge-demo")
NETNS_DIRECTORY = Path("/run/netns")
BPFFS = Path("/sys/fs/bpf")
_ATTEMPTS_MAX = 8


class Claim:
    """The token of this run. ``release`` removes everything that was made under it."""

    def __init__(self, token: str, lock_fd: int) -> None:
        self.token = token
        self._lock_fd = lock_fd

    @classmethod
    def take(cls) -> Claim:
        """A fresh token. Raises PrivilegeError or OSError when /run cannot be written."""
        tools.require_privileges()
        tools.mount_file_systems()
        LOCK_DIRECTORY.mkdir(parents=True, exist_ok=True)
        for _ in range(_ATTEMPTS_MAX):
            token = secrets.token_hex(3)
            fd = os.open(_lock_path(token), os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
            # another run may look for leftovers between the two calls and take or remove the file
            if _try_lock(fd) and os.fstat(fd).st_nlink > 0:
                return cls(token, fd)
            os.close(fd)
        raise tools.CommandError(f"{LOCK_DIRECTORY}: no lock to be had (got {_ATTEMPTS_MAX} tries)")

    def namespace(self, role: str) -> str:
        return f"mapbridge-{self.token}-{role}"

    @property
    def pin_directory(self) -> Path:
        return BPFFS / f"mapbridge-demo-{self.token}"

    def release(self) -> None:
        _remove_all_of(self.token)
        with contextlib.suppress(FileNotFoundError):
            _lock_path(self.token).unlink()
        os.close(self._lock_fd)

    def __enter__(self) -> Claim:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def reap_leftovers() -> list[str]:
    """Removes namespaces and pins of runs that no longer live; returns their tokens."""
    reaped = []
    for path in sorted(LOCK_DIRECTORY.glob("*.lock")):
        try:
            fd = os.open(path, os.O_RDWR)
        except FileNotFoundError:
            continue
        try:
            if _try_lock(fd) and os.fstat(fd).st_nlink > 0:
                _remove_all_of(path.stem)
                path.unlink()
                reaped.append(path.stem)
        finally:
            os.close(fd)
    return reaped


def _lock_path(token: str) -> Path:
    return LOCK_DIRECTORY / f"{token}.lock"


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_all_of(token: str) -> None:
    for path in NETNS_DIRECTORY.glob(f"mapbridge-{token}-*"):
        tools.run(["ip", "netns", "delete", path.name])
    shutil.rmtree(BPFFS / f"mapbridge-demo-{token}", ignore_errors=True)
