"""The state directory of a node: one process at a time, and what it tells the other commands."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import struct
from pathlib import Path
from types import TracebackType

import orjson

from bridge.errors import BridgeError, Exit, PrivilegeError


class AlreadyRunningError(BridgeError):
    """Another process runs this node on this machine."""

    exit_code = Exit.TEMPORARY


class InsecureDirectoryError(BridgeError):
    """Others could write the state directory."""

    exit_code = Exit.CONFIG


class StateDirectory:
    """Holds the lock of a node for the life of the process; files are written atomically."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = -1

    def __enter__(self) -> StateDirectory:
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except PermissionError as error:
            raise PrivilegeError(
                f"state directory {self.path}: cannot be written",
                hint="run as root, or set node.state_dir to a directory of yours",
            ) from error
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise BridgeError(
                f"state directory {self.path}: {reason}", hint="set node.state_dir"
            ) from error
        try:
            _require_private(self.path)
        except BridgeError:
            os.close(self._lock)
            raise
        try:
            fcntl.fcntl(self._lock, fcntl.F_OFD_SETLK, _whole_file(fcntl.F_WRLCK))
        except BlockingIOError as error:
            holder = os.read(self._lock, 32).decode(errors="replace").strip()
            os.close(self._lock)
            raise AlreadyRunningError(
                f"state directory {self.path}: in use by another bridge (process {holder})",
                hint="stop that one first, or give this node its own node.state_dir",
            ) from error
        # What a bridge that was killed said of itself is not true any more.
        (self.path / "status.json").unlink(missing_ok=True)
        os.ftruncate(self._lock, 0)
        os.write(self._lock, str(os.getpid()).encode())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # nothing that should hide why the node ended
            (self.path / "status.json").unlink(missing_ok=True)
        os.close(self._lock)

    def write(self, name: str, content: object) -> None:
        """Replace a JSON file in one step, readable by the owner only. Raises ``OSError``."""
        draft = self.path / f".{name}.new"
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY))
        draft.replace(self.path / name)


def _require_private(path: Path) -> None:
    """Whoever writes there decides what the bridge takes for its own past, and what it is asked.

    Raises ``InsecureDirectoryError``.
    """
    found = path.stat()
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise InsecureDirectoryError(
            f"state directory {path}: others may write it (got mode {found.st_mode & 0o7777:04o})",
            hint=f"`chmod 700 {path}`, or set node.state_dir to a directory of its own",
        )
    if found.st_uid not in (0, os.geteuid()):
        raise InsecureDirectoryError(
            f"state directory {path}: belongs to another user (got uid {found.st_uid})",
            hint=f"`chown {os.geteuid()} {path}`, or set node.state_dir to another one",
        )


def read_status(path: Path) -> dict[str, object] | None:
    """What the bridge with this state directory last said of itself; ``None``: it does not run."""
    if not _is_locked(path / "lock"):
        return None
    try:
        content = orjson.loads((path / "status.json").read_bytes())
    except (FileNotFoundError, orjson.JSONDecodeError):
        return None
    return content if isinstance(content, dict) else None


def _is_locked(path: Path) -> bool:
    """Whether a process holds that lock; asked without taking it, which could keep one out.

    The kernel gives a lock back when its process dies, so what a killed bridge said of itself a
    moment ago does not count (fcntl(2), F_OFD_GETLK).
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        answer = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _whole_file(fcntl.F_RDLCK))
    finally:
        os.close(descriptor)
    (kind,) = struct.unpack_from("h", answer)
    return bool(kind != fcntl.F_UNLCK)


def _whole_file(kind: int) -> bytes:
    """``struct flock``: kind, whence, start, length (0: to the end), process (0 for OFD locks)."""
    return struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0)
