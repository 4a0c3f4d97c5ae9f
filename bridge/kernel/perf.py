"""perf_event_open(2), as far as the buffers that BPF programs write need it.

Layouts are those of ``struct perf_event_attr`` and ``enum perf_sw_ids`` in
``include/uapi/linux/perf_event.h``.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
from pathlib import Path

from bridge.errors import UnavailableError
from bridge.kernel.errors import KernelError, KernelPrivilegeError

_NUMBERS = {
    "x86_64": 298,
    "aarch64": 241,
    "riscv64": 241,
    "loongarch64": 241,
    "ppc64le": 319,
    "ppc64": 319,
    "s390x": 331,
}
# type, size, config, sample_period, sample_type, read_format, flags, wakeup, breakpoint's two
_ATTR = struct.Struct("=IIQQQQQIIQ")
_SOFTWARE = 1  # PERF_TYPE_SOFTWARE
_BPF_OUTPUT = 10  # PERF_COUNT_SW_BPF_OUTPUT
_SAMPLE_RAW = 1 << 10  # PERF_SAMPLE_RAW: a sample is what the program wrote, and no more
_WATERMARK = 1 << 14  # the bit of the flags that makes ``wakeup`` a number of bytes
_CLOSE_ON_EXEC = 8  # PERF_FLAG_FD_CLOEXEC
_ANY_TASK = -1
_ONLINE = Path("/sys/devices/system/cpu/online")

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [
    ctypes.c_long,
    ctypes.c_void_p,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_int,
    ctypes.c_ulong,
]


def open_output_event(cpu: int, *, wakeup_bytes: int = 0) -> int:
    """The event whose buffer takes what BPF programs on a CPU send; answers its descriptor.

    The reader is woken after ``wakeup_bytes``, or with 0 by each record. Raises
    ``KernelPrivilegeError``; ``KernelError`` with ``errno.ENODEV`` for a CPU that is offline.
    """
    try:
        number = _NUMBERS[platform.machine()]
    except KeyError:
        raise UnavailableError(
            f"perf_event_open: number not known for this machine (got {platform.machine()})",
            hint='use capture.transport = "ring"',
        ) from None
    flags, wakeup = (_WATERMARK, wakeup_bytes) if wakeup_bytes else (0, 1)
    fields = (_SOFTWARE, _ATTR.size, _BPF_OUTPUT, 1, _SAMPLE_RAW, 0, flags, wakeup, 0, 0)
    attr = ctypes.create_string_buffer(_ATTR.pack(*fields), _ATTR.size)
    fd: int = _syscall(number, ctypes.addressof(attr), _ANY_TASK, cpu, -1, _CLOSE_ON_EXEC)
    if fd >= 0:
        return fd
    code = ctypes.get_errno()
    message = f"perf event of CPU {cpu}: cannot be opened (got {os.strerror(code)})"
    if code in (errno.EPERM, errno.EACCES):
        raise KernelPrivilegeError(message, hint="run as root or with CAP_PERFMON", errno=code)
    hint = "raise the limit of open files" if code == errno.EMFILE else ""
    raise KernelError(message, hint=hint, errno=code)


def online_cpus() -> tuple[int, ...]:
    """The numbers of the CPUs that are online, rising."""
    return cpu_list(_ONLINE.read_text(encoding="ascii"))


def cpu_list(text: str) -> tuple[int, ...]:
    """``0-2,5`` as 0, 1, 2, 5 (the kernel's list format)."""
    cpus: list[int] = []
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus.extend(range(int(first), int(last or first) + 1))
    return tuple(cpus)
