"""BPF programs: opening pinned ones, running them in a test, and their statistics."""

from __future__ import annotations

import enum
import errno
import os
import struct
from dataclasses import dataclass
from types import TracebackType

from bridge.kernel import syscall
from bridge.kernel.errors import Asked, MapClosedError, UnsupportedError, check, translate
from bridge.kernel.maps import is_descriptor_of, raise_memlock_limit

_PROGRAM_INFO_BYTES = 256
_NAME_OFFSET = 64
_STATS_OFFSET = 192  # run_time_ns, run_cnt, recursion_misses of struct bpf_prog_info
_INTERRUPTS_MAX = 16
_LOG_BYTES = 65_536
FRAME_BYTES_MIN = 14  # the kernel refuses test data shorter than an Ethernet header


class ProgramType(enum.IntEnum):
    """``enum bpf_prog_type``, the types that can be run in a test."""

    SOCKET_FILTER = 1
    SCHED_CLS = 3
    XDP = 6


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a test run answered. ``duration_ns`` is the mean of one repetition.

    ``interrupted`` counts runs that a signal cut short and that were begun anew: in each, an
    unknown number of repetitions had been done already.
    """

    __test__ = False  # not a test case, whatever its name

    retval: int
    duration_ns: int
    interrupted: int = 0


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel tells of a program (``struct bpf_prog_info``).

    ``recursion_misses`` (5.12) counts calls that were skipped because the program was running on
    that CPU already. ``runs`` and ``run_time_ns`` move only while statistics are switched on.
    """

    id: int
    type: int
    name: str
    run_time_ns: int
    runs: int
    recursion_misses: int


class KernelProgram:
    """A loaded program. Owns its descriptor."""

    __slots__ = ("fd",)

    fd: int

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> KernelProgram:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the descriptor back; a second call does nothing."""
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)

    def fileno(self) -> int:
        if self.fd < 0:
            raise MapClosedError("program: used after close", hint="report this as a fault")
        return self.fd

    def info(self) -> ProgramInfo:
        return program_info(self.fileno())

    def test_run(self, data: bytes, *, repeat: int = 1) -> TestRun:
        return test_run(self.fileno(), data, repeat=repeat)

    def pin(self, path: str | os.PathLike[str]) -> None:
        """Give the program a path below a bpffs."""
        code = syscall.pin(self.fileno(), os.fsencode(path))
        check(code, Asked.PIN, "program", f"pin at {os.fspath(path)}")


def open_pinned_program(path: str | os.PathLike[str]) -> KernelProgram:
    """Open the program that is pinned at a path."""
    text = os.fspath(path)
    fd = syscall.get_pinned(os.fsencode(text))
    check(max(-fd, 0), Asked.OPEN, f"pin {text}", "open program")
    if not is_descriptor_of(fd, "bpf-prog"):
        os.close(fd)
        raise UnsupportedError(
            f"pin {text}: open: not a program", hint="give the path of a pinned program"
        )
    return KernelProgram(fd)


def load_program(kind: ProgramType | int, instructions: bytes, *, name: str = "") -> KernelProgram:
    """Load raw instructions (8 bytes each) as a program under the GPL."""
    code = name.encode()[: syscall.OBJECT_NAME_BYTES - 1]
    fd, _ = syscall.load_program(int(kind), instructions, code, 0)
    if fd == -errno.EPERM and raise_memlock_limit():
        fd, _ = syscall.load_program(int(kind), instructions, code, 0)
    if fd < 0:
        # Only now with a log, which costs memory and can fail by itself (ENOSPC).
        _, log = syscall.load_program(int(kind), instructions, code, _LOG_BYTES)
        said = log.strip().splitlines()[-3:]
        error = translate(-fd, Asked.PROGRAM, f"program {name or '(no name)'}", "load")
        if said:
            error.hint = f"the verifier said: {' / '.join(said)}"
        raise error
    return KernelProgram(fd)


def test_run(fd: int, data: bytes, *, repeat: int = 1) -> TestRun:  # noqa: PT028 - no test
    """Run a networking program ``repeat`` times on a packet (at least 14 bytes).

    A signal ends a run early with EINTR; it is then begun anew, a bounded number of times.
    """
    for interrupted in range(_INTERRUPTS_MAX):
        code, retval, duration_ns = syscall.test_run(fd, data, repeat)
        if code == errno.EINTR:
            continue
        check(code, Asked.PROGRAM, f"program fd {fd}", "test run")
        return TestRun(retval, duration_ns, interrupted)
    raise translate(errno.EINTR, Asked.PROGRAM, f"program fd {fd}", "test run")


test_run.__test__ = False  # type: ignore[attr-defined]  # not a test case either


def program_info(fd: int) -> ProgramInfo:
    """What the kernel tells of a program; 0 for fields that it does not have."""
    code, data = syscall.object_info(fd, _PROGRAM_INFO_BYTES)
    check(code, Asked.PROGRAM, f"program fd {fd}", "read info")
    kind, program_id = struct.unpack_from("=II", data)
    name = data[_NAME_OFFSET : _NAME_OFFSET + syscall.OBJECT_NAME_BYTES].split(b"\0", 1)[0]
    run_time_ns, runs, misses = struct.unpack_from("=QQQ", data, _STATS_OFFSET)
    return ProgramInfo(program_id, kind, name.decode("utf-8", "replace"), run_time_ns, runs, misses)
