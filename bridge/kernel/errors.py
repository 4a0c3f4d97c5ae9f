"""Typed errors for what bpf(2) answers. Each names the map (or path) and tells what to do next.

The meaning of an errno depends on what was asked: EPERM on an element means a frozen or read-only
map, on opening by id it means a missing capability. ``Asked`` says which.
"""

from __future__ import annotations

import enum
import errno
from collections.abc import Sequence

from bridge.errors import BridgeError, Exit, InvariantError, PrivilegeError
from bridge.kernel.maptypes import type_name
from bridge.kernel.syscall import ENOTSUPP
from bridge.model import MapInfo

# Another context holds the bucket, or a signal came: nothing is wrong with the element. The last
# two are what the locks of Linux 6.15 and later answer where older ones answer EBUSY.
BUSY = frozenset((errno.EBUSY, errno.EAGAIN, errno.EINTR, errno.EDEADLK, errno.ETIMEDOUT))


class KernelError(BridgeError):
    """The kernel refused; ``errno`` is its answer (0 where the bridge refused by itself)."""

    def __init__(self, message: str, *, hint: str = "", errno: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.errno = errno


class MapNotFoundError(KernelError):
    """No such map."""

    exit_code = Exit.UNAVAILABLE


class MapAmbiguousError(KernelError):
    """Several maps bear the name; ``candidates`` are they."""

    exit_code = Exit.CONFIG

    def __init__(self, name: str, candidates: Sequence[MapInfo]) -> None:
        listed = "; ".join(describe(info) for info in candidates)
        super().__init__(
            f"map {name}: the name is not unique (got {listed})",
            hint="select the map by its pin path or by its id",
        )
        self.candidates = tuple(candidates)


class MapFullError(KernelError):
    """E2BIG: no room for another key, or an array index beyond the end."""


class KeyExistsError(KernelError):
    """EEXIST: the key was to be new."""


class KeyMissingError(KernelError):
    """ENOENT: the key was to be there."""


class MapBusyError(KernelError):
    """One of ``BUSY``: may pass when tried again."""

    exit_code = Exit.TEMPORARY


class KernelMemoryError(KernelError):
    """ENOMEM: the kernel has no memory for an element or a map."""

    exit_code = Exit.TEMPORARY


class ScanUnsteadyError(KernelError):
    """Keys vanish faster than a walk by key can go on."""

    exit_code = Exit.TEMPORARY


class SizeMismatchError(KernelError):
    """Keys or values have another width than the map's."""


class UnsupportedError(KernelError):
    """The kernel, or the type of the map, has no such operation."""

    exit_code = Exit.UNAVAILABLE


class InvalidError(KernelError):
    """EINVAL: the kernel knows the operation but not these arguments."""


class MapReadOnlyError(KernelError):
    """EPERM on an element: the map is frozen or was created read-only for user space."""

    exit_code = Exit.CONFIG


class MapClosedError(KernelError, InvariantError):
    """The descriptor was closed before the call, a fault of the caller."""


class PathTakenError(KernelError):
    """EEXIST on a pin: something stands at the path."""


class KernelPrivilegeError(KernelError, PrivilegeError):
    """EPERM or EACCES: a capability is missing."""


class Asked(enum.Enum):
    """What was asked of the kernel."""

    ELEMENT = "element"
    CREATE = "create"
    OPEN = "open"
    PIN = "pin"
    PROGRAM = "program"


def describe(info: MapInfo) -> str:
    """One map in words, for messages."""
    return (
        f"id {info.id} name {info.name or '(none)'} {type_name(info.type)} "
        f"key {info.key_size} value {info.value_size} max {info.max_entries}"
    )


_CAPABILITY = {
    Asked.CREATE: "CAP_BPF (CAP_SYS_ADMIN before Linux 5.8)",
    Asked.OPEN: "CAP_SYS_ADMIN",
    Asked.PIN: "CAP_BPF and write access to the folder",
    Asked.PROGRAM: "CAP_BPF and, by type, CAP_NET_ADMIN or CAP_PERFMON",
}

_Row = tuple[type[KernelError], str, str]

_ELEMENT_ROWS: dict[int, _Row] = {
    errno.E2BIG: (MapFullError, "no room for the key", "raise max_entries of the map"),
    errno.EEXIST: (KeyExistsError, "the key is there already", "update without NOEXIST"),
    errno.ENOENT: (KeyMissingError, "the key is not there", "insert it first"),
    errno.EPERM: (
        MapReadOnlyError,
        "not open to this access from user space",
        "see whether the map is frozen or was created read-only or write-only",
    ),
    errno.ENOSPC: (MapFullError, "no room", "raise max_entries or the size of the batch"),
}

_COMMON_ROWS: dict[int, _Row] = {
    errno.EBUSY: (MapBusyError, "busy", "try again"),
    errno.EAGAIN: (MapBusyError, "busy", "try again"),
    errno.EINTR: (MapBusyError, "interrupted", "try again"),
    errno.EDEADLK: (MapBusyError, "bucket is locked", "try again"),
    errno.ETIMEDOUT: (MapBusyError, "bucket is locked", "try again"),
    errno.ENOMEM: (KernelMemoryError, "out of kernel memory", "free memory or raise the limit"),
    ENOTSUPP: (UnsupportedError, "not supported by this type of map", "use another type of map"),
    errno.EOPNOTSUPP: (UnsupportedError, "not supported", "use another type of map"),
    errno.ENOSYS: (UnsupportedError, "bpf is not built in", "use a kernel with CONFIG_BPF_SYSCALL"),
    errno.EINVAL: (
        InvalidError,
        "arguments refused",
        "the type of the map or the kernel may not have this operation",
    ),
    errno.EBADF: (MapClosedError, "descriptor is closed", "report this as a fault"),
    errno.EMFILE: (KernelError, "too many open files", "raise the limit of open files"),
    errno.ENFILE: (KernelError, "too many open files", "raise fs.file-max"),
    errno.E2BIG: (KernelError, "too large", "make keys, values or max_entries smaller"),
    errno.EFAULT: (KernelError, "address not readable", "report this as a fault"),
}


def translate(code: int, asked: Asked, subject: str, action: str) -> KernelError:
    """The error for an errno.

    ``subject`` is like ``map conntrack (id 7)``, ``action`` like ``update``.
    """
    row = _ELEMENT_ROWS.get(code) if asked is Asked.ELEMENT else None
    row = row or _outside_elements(code, asked) or _COMMON_ROWS.get(code)
    kind, reason, hint = row or (KernelError, "refused", "see the errno in bpf(2)")
    name = "ENOTSUPP" if code == ENOTSUPP else errno.errorcode.get(code, str(code))
    return kind(f"{subject}: {action}: {reason} (got {name})", hint=hint, errno=code)


def _outside_elements(code: int, asked: Asked) -> _Row | None:
    if asked is Asked.ELEMENT:
        return None
    if code in (errno.EPERM, errno.EACCES):
        hint = f"give the process {_CAPABILITY[asked]}"
        return KernelPrivilegeError, f"missing {_CAPABILITY[asked]}", hint
    if code == errno.ENOENT and asked is Asked.OPEN:
        return MapNotFoundError, "not there", "list the maps with `mapbridge maps`"
    if code == errno.ENOENT and asked is Asked.PIN:
        return KernelError, "the folder is not there", "make the folder below a mounted bpffs"
    if code == errno.EEXIST:
        return PathTakenError, "something stands there already", "remove it or take another path"
    return None


def check(code: int, asked: Asked, subject: str, action: str) -> None:
    """Raise the error for an errno; nothing for 0."""
    if code:
        raise translate(code, asked, subject, action)
