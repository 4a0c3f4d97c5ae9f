"""The bpf(2) system call: the only place in the project that makes it.

Every function answers the errno (0: success) instead of raising, because callers of batches need
the errno together with the count of what was done. ``bridge.kernel.errors`` turns an errno into a
typed error. ctypes releases the interpreter lock for the time of the call.

Layouts are those of ``union bpf_attr`` in ``include/uapi/linux/bpf.h``.
"""

from __future__ import annotations

import ctypes
import enum
import platform
import struct
from typing import NamedTuple

from bridge.errors import UnavailableError

ENOTSUPP = 524  # kernel-internal "not supported", which bpf(2) lets out to user space
OBJECT_NAME_BYTES = 16  # BPF_OBJ_NAME_LEN, the closing zero included

_NUMBERS = {
    "x86_64": 321,
    "aarch64": 280,
    "riscv64": 280,
    "loongarch64": 280,
    "ppc64le": 361,
    "ppc64": 361,
    "s390x": 351,
}

_ELEMENT = struct.Struct("=I4xQQQ")
_BATCH = struct.Struct("=QQQQIIQQ")
_BATCH_COUNT_OFFSET = 32
_CREATE = struct.Struct("=IIIIIII16s")
_OBJECT = struct.Struct("=QII")
_IDS = struct.Struct("=III")
_INFO = struct.Struct("=IIQ")
_BTF_INFO = struct.Struct("=QIIQII")  # struct bpf_btf_info
_TEST = struct.Struct("=IIIIQQIIIIQQIII4x")
_LOAD = struct.Struct("=IIQQIIQII16sII")

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_syscall.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_ulong]

CharArray = ctypes.Array[ctypes.c_char]


class Command(enum.IntEnum):
    """``enum bpf_cmd``, the commands in use."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    MAP_GET_NEXT_ID = 12
    PROG_GET_FD_BY_ID = 13
    MAP_GET_FD_BY_ID = 14
    OBJ_GET_INFO_BY_FD = 15
    BTF_GET_FD_BY_ID = 19
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_FREEZE = 22
    MAP_LOOKUP_BATCH = 24
    MAP_LOOKUP_AND_DELETE_BATCH = 25
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27


class MapFields(NamedTuple):
    """The part of ``union bpf_attr`` that BPF_MAP_CREATE reads, without ``numa_node``."""

    map_type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    inner_fd: int
    name: bytes


def _number() -> int:
    machine = platform.machine()
    try:
        return _NUMBERS[machine]
    except KeyError:
        raise UnavailableError(
            f"bpf system call: number not known for this machine (got {machine})",
            hint="run on x86_64, aarch64, riscv64, loongarch64, ppc64 or s390x",
        ) from None


_BPF = _number()


def invoke(command: int, attr: CharArray) -> int:
    """Make the call. Answers the result (a descriptor or 0), or minus the errno."""
    result: int = _syscall(_BPF, command, ctypes.addressof(attr), len(attr))
    return result if result >= 0 else -ctypes.get_errno()


def _packed(data: bytes) -> CharArray:
    return ctypes.create_string_buffer(data, len(data))


def element(command: Command, fd: int, key: int, value: int = 0, flags: int = 0) -> int:
    """An element command. ``key`` and ``value`` are addresses. Answers the errno."""
    return -invoke(command, _packed(_ELEMENT.pack(fd, key, value, flags)))


def batch(
    command: Command,
    fd: int,
    count: int,
    *,
    keys: int,
    values: int = 0,
    token_in: int = 0,
    token_out: int = 0,
    flags: int = 0,
) -> tuple[int, int]:
    """A batch command over ``count`` elements. Answers (errno, the count the kernel left).

    The kernel leaves the count untouched when it refuses the call before the first element.
    """
    attr = _packed(_BATCH.pack(token_in, token_out, keys, values, count, fd, flags, 0))
    result = invoke(command, attr)
    (done,) = struct.unpack_from("=I", attr, _BATCH_COUNT_OFFSET)
    return -min(result, 0), done


def create(fields: MapFields) -> int:
    """BPF_MAP_CREATE. Answers the new descriptor or minus the errno."""
    numbers = fields[:6]
    return invoke(Command.MAP_CREATE, _packed(_CREATE.pack(*numbers, 0, fields.name)))


def pin(fd: int, path: bytes) -> int:
    """BPF_OBJ_PIN. Answers the errno."""
    text = ctypes.create_string_buffer(path)
    return -invoke(Command.OBJ_PIN, _packed(_OBJECT.pack(ctypes.addressof(text), fd, 0)))


def get_pinned(path: bytes) -> int:
    """BPF_OBJ_GET. Answers a descriptor or minus the errno."""
    text = ctypes.create_string_buffer(path)
    return invoke(Command.OBJ_GET, _packed(_OBJECT.pack(ctypes.addressof(text), 0, 0)))


def next_map_id(after: int) -> tuple[int, int]:
    """The smallest map id above ``after``. Answers (errno, id); ENOENT at the end."""
    attr = _packed(_IDS.pack(after, 0, 0))
    result = invoke(Command.MAP_GET_NEXT_ID, attr)
    return -min(result, 0), int(_IDS.unpack(attr.raw)[1])


def descriptor_of(command: Command, object_id: int) -> int:
    """A descriptor for an id, or minus the errno (ENOENT: no such object)."""
    return invoke(command, _packed(_IDS.pack(object_id, 0, 0)))


def object_info(fd: int, size: int) -> tuple[int, bytes]:
    """BPF_OBJ_GET_INFO_BY_FD. Answers (errno, ``size`` bytes; zero where the kernel has less)."""
    data = ctypes.create_string_buffer(size)
    attr = _packed(_INFO.pack(fd, size, ctypes.addressof(data)))
    return -min(invoke(Command.OBJ_GET_INFO_BY_FD, attr), 0), data.raw


def btf_blob(fd: int, size: int) -> tuple[int, bytes, int]:
    """BPF_OBJ_GET_INFO_BY_FD of a BTF object. Answers (errno, at most ``size`` bytes, its size)."""
    data = ctypes.create_string_buffer(max(size, 1))
    fields = _BTF_INFO.pack(ctypes.addressof(data) if size else 0, size, 0, 0, 0, 0)
    info = _packed(fields)
    attr = _packed(_INFO.pack(fd, len(info), ctypes.addressof(info)))
    code = -min(invoke(Command.OBJ_GET_INFO_BY_FD, attr), 0)
    return code, data.raw[:size], int(_BTF_INFO.unpack(info.raw)[1])


def freeze(fd: int) -> int:
    """BPF_MAP_FREEZE: user space may not write any more. Answers the errno."""
    return -invoke(Command.MAP_FREEZE, _packed(struct.pack("=I", fd)))


def test_run(fd: int, data: bytes, repeat: int) -> tuple[int, int, int]:
    """BPF_PROG_TEST_RUN. Answers (errno, return value of the program, mean nanoseconds)."""
    copy = ctypes.create_string_buffer(data, len(data)) if data else None
    address = ctypes.addressof(copy) if copy is not None else 0
    attr = _packed(_TEST.pack(fd, 0, len(data), 0, address, 0, repeat, 0, 0, 0, 0, 0, 0, 0, 0))
    result = invoke(Command.PROG_TEST_RUN, attr)
    fields = _TEST.unpack(attr.raw)
    return -min(result, 0), int(fields[1]), int(fields[7])


def load_program(
    program_type: int, instructions: bytes, name: bytes, log_bytes: int
) -> tuple[int, str]:
    """BPF_PROG_LOAD of raw instructions (8 bytes each), licence GPL.

    Answers (descriptor or minus the errno, what the verifier said).
    """
    code = ctypes.create_string_buffer(instructions, len(instructions))
    licence = ctypes.create_string_buffer(b"GPL")
    log = ctypes.create_string_buffer(max(log_bytes, 1))
    fields = _LOAD.pack(
        program_type,
        len(instructions) // 8,
        ctypes.addressof(code),
        ctypes.addressof(licence),
        1 if log_bytes else 0,
        log_bytes,
        ctypes.addressof(log) if log_bytes else 0,
        0,
        0,
        name,
        0,
        0,
    )
    result = invoke(Command.PROG_LOAD, _packed(fields))
    return result, log.value.decode("ascii", "replace")
