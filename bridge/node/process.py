"""What a node needs of its own process: capabilities, and an allocator that keeps its memory."""

from __future__ import annotations

import ctypes

from bridge.config.settings import CaptureMode, Config
from bridge.errors import PrivilegeError
from bridge.kernel.features import Answer, Capability, Probes

# mallopt(3), <malloc.h>
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 64 << 20
_MAPPED_BYTES = 32 << 20


def require_privileges(config: Config) -> None:
    """Raises ``PrivilegeError`` naming every capability that this configuration misses."""
    needed = [Capability.CAP_BPF]
    probes = config.capture.mode is not CaptureMode.SWEEP
    if probes and any(entry.role.publishes and entry.emit is None for entry in config.maps):
        needed.append(Capability.CAP_PERFMON)
    if any(entry.selector.pin is None for entry in config.maps):
        needed.append(Capability.CAP_SYS_ADMIN)  # maps by name and id
    here = Probes()
    missing = [c.name for c in needed if here.capability(c).answer is Answer.NO]
    if missing:
        raise PrivilegeError(
            f"process: lacks {' and '.join(missing)}",
            hint="run as root, or give the service AmbientCapabilities=" + " ".join(missing),
        )


def tune_allocator() -> None:
    """Let glibc keep what messages of a megabyte free, instead of mapping each one anew.

    With its defaults every such buffer is mapped, faulted in page by page and unmapped again, which
    was seen to cost several times what encoding and decoding a message do. Other C libraries
    have no mallopt and are left alone.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _MAPPED_BYTES)
        mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
