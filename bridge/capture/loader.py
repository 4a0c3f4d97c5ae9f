"""The only place that imports BCC: compiles the capture programs, loads and attaches them.

BCC (distribution package ``python3-bpfcc``, 0.26 or later) is imported when it is first needed, so
that everything else of the bridge works without it. Its exceptions, and what its compiler prints on
descriptor 2, become ``ProbeError``.
"""

from __future__ import annotations

import ctypes
import enum
import importlib
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, cast

from bridge.errors import BridgeError, Exit, PrivilegeError, UnavailableError
from bridge.kernel.programs import program_info
from bridge.resources import bpf_source

MESSAGE_LINES_MAX = 12
TRACEFS = (Path("/sys/kernel/tracing"), Path("/sys/kernel/debug/tracing"))
_stderr_lock = threading.Lock()


class ProbeError(BridgeError):
    """A capture program could not be compiled, loaded or attached."""

    exit_code = Exit.UNAVAILABLE


class ProgramType(enum.IntEnum):
    """``enum bpf_prog_type``, the types in use."""

    KPROBE = 2
    SCHED_CLS = 3
    TRACEPOINT = 5
    XDP = 6
    RAW_TRACEPOINT = 17
    TRACING = 26


@dataclass(frozen=True, slots=True)
class Attachment:
    """One program at one place.

    ``hits`` and ``misses`` are those of the kprobe, ``None`` where nobody counts them. ``skipped``:
    hits at which the kernel did not run the program (counted from Linux 6.7 on).
    """

    target: str
    function: str
    hits: int | None = None
    misses: int | None = None
    skipped: int = 0


class _Function(Protocol):
    fd: int


class _Table(Protocol):
    map_fd: int


class _Object(Protocol):
    """``bcc.BPF``. Its strings are bytes: it warns of others."""

    module: int

    def load_func(self, name: bytes, kind: int) -> _Function: ...
    def get_table(self, name: bytes) -> _Table: ...
    def attach_tracepoint(self, *, tp: bytes, fn_name: bytes) -> None: ...
    def attach_raw_tracepoint(self, *, tp: bytes, fn_name: bytes) -> None: ...
    def cleanup(self) -> None: ...


def read_source() -> str:
    """The capture programs with the project's own headers put in place of their includes.

    BCC looks for quoted includes in the working directory first, which is not ours to trust.
    """

    def text_of(match: re.Match[str]) -> str:
        return bpf_source(match[1]).read_text()

    return re.sub(
        r'^#include "([^"]+)"$',
        text_of,
        bpf_source("capture.bpf.c").read_text(),
        flags=re.MULTILINE,
    )


def import_bcc() -> Callable[..., _Object]:
    """BCC's class ``BPF``. Raises ``UnavailableError`` when there is no usable BCC."""
    hint = (
        "install the distribution's package python3-bpfcc (PyPI's `bcc` is something else) and "
        "make the virtual environment with --system-site-packages"
    )
    try:
        module = importlib.import_module("bcc")
    except (ImportError, OSError) as error:
        raise UnavailableError(f"bcc: cannot be imported (got {error})", hint=hint) from error
    if not hasattr(module, "BPF"):
        raise UnavailableError(f"bcc: not the BPF compiler (got {module.__file__})", hint=hint)
    return cast("Callable[..., _Object]", module.BPF)


class ProbeObject:
    """A compiled source with its maps, programs and attachments; ``close`` undoes all of it."""

    def __init__(self, text: str, defines: Mapping[str, int]) -> None:
        """Compile. Raises ``ProbeError``, ``PrivilegeError`` or ``UnavailableError``."""
        if os.geteuid() != 0:
            raise PrivilegeError(
                f"capture programs: need root (got uid {os.geteuid()})",
                hint="run as root; programs on kprobes need CAP_BPF, CAP_PERFMON and tracefs",
            )
        bpf = import_bcc()
        self._lib = importlib.import_module("bcc").lib
        self._token = os.urandom(4).hex()
        self._probes: list[tuple[str, str, str, int]] = []  # event, symbol, function, descriptor
        self._tracing: list[tuple[Attachment, int, int]] = []  # program and link descriptors
        self._tracepoints: list[Attachment] = []
        flags = [f"-D{name}={value}" for name, value in defines.items()]
        with _quiet() as said:
            try:
                self._object: _Object | None = bpf(text=text.encode(), cflags=flags)
            except Exception as error:  # BCC raises bare Exception
                raise ProbeError(
                    f"capture programs: cannot be compiled (got {_short(said(), error)})",
                    hint="install the kernel's headers (Debian: linux-headers-amd64)",
                ) from error

    def map_fd(self, name: str) -> int:
        """The descriptor of a map, owned by this object."""
        return self._opened().get_table(name.encode()).map_fd

    def has(self, name: str) -> bool:
        """Whether the source, as compiled, has a map of this name."""
        try:
            self._opened().get_table(name.encode())
        except KeyError:
            return False
        return True

    def load(self, function: str, kind: ProgramType) -> int:
        """Load a program; its descriptor is owned by this object."""
        with _quiet() as said:
            try:
                return self._opened().load_func(function.encode(), int(kind)).fd
            except Exception as error:
                raise ProbeError(
                    f"program {function}: refused by the kernel (got {_short(said(), error)})",
                    hint="see the verifier's words above; lockdown also refuses tracing programs",
                ) from error

    def attach_kprobe(
        self, symbol: str, function: str, *, on_return: bool, instances: int = 1
    ) -> None:
        """Attach to a kernel function's entry or return.

        Goes through tracefs, for which BCC wants ``instances`` > 0: only there the kernel counts
        misses. ``instances`` is how many returns can be awaited at once (entries ignore it).
        """
        fd = self.load(function, ProgramType.KPROBE)
        event = f"{'r' if on_return else 'p'}_mapbridge_{self._token}_{symbol}".replace(".", "_")
        with _quiet() as said:
            probe: int = self._lib.bpf_attach_kprobe(
                fd, int(on_return), event.encode(), symbol.encode(), 0, instances
            )
            reason = _short(said())
        if probe < 0:
            raise ProbeError(
                f"kprobe {symbol}: cannot be attached (got {reason})",
                hint="the kernel needs CONFIG_KPROBE_EVENTS and tracefs mounted, and lets no probe "
                "into files that it was told not to trace (Linux 7: those of LPM tries)",
            )
        self._probes.append((event, symbol, function, probe))

    def attach_tracing(self, symbol: str, function: str, *, on_return: bool) -> int:
        """Attach to a kernel function's entry (fentry) or exit (fexit).

        Answers the program's descriptor, owned by this object.
        """
        # BCC takes the place from the name under which a program is loaded, so that one source
        # function could stand at one place only, and a place have one: hence not its load_func.
        name = f"{'kretfunc' if on_return else 'kfunc'}__{symbol}".encode()
        module, text = self._opened().module, function.encode()
        start, size = (
            f(module, text) for f in (self._lib.bpf_function_start, self._lib.bpf_function_size)
        )
        rights = self._lib.bpf_module_license(module), self._lib.bpf_module_kern_version(module)
        with _quiet() as said:
            fd: int = self._lib.bcc_func_load(
                module, int(ProgramType.TRACING), name, start, size, *rights, 0, None, 0, None, -1
            )
            link: int = self._lib.bpf_attach_kfunc(fd) if fd >= 0 else -1
            code = ctypes.get_errno()
            reason = _short(said(), OSError(code, os.strerror(code)))
        where = f"{'fexit' if on_return else 'fentry'} {symbol}"
        if fd >= 0:
            self._tracing.append((Attachment(where, function), fd, link))
        if link < 0:
            raise ProbeError(
                f"{where}: cannot be {'attached' if fd >= 0 else 'loaded'} (got {reason})",
                hint="the kernel must allow tracing programs; else use mode kprobe",
            )
        return fd

    def attach_tracepoint(self, name: str, function: str) -> None:
        """Attach to a classic tracepoint, ``category:event``."""
        self.load(function, ProgramType.TRACEPOINT)
        where, what = name.encode(), function.encode()
        self._attach(name, function, lambda bpf: bpf.attach_tracepoint(tp=where, fn_name=what))

    def attach_raw_tracepoint(self, name: str, function: str) -> None:
        """Attach to a raw tracepoint, by its event's name."""
        self.load(function, ProgramType.RAW_TRACEPOINT)
        where, what = name.encode(), function.encode()
        self._attach(name, function, lambda bpf: bpf.attach_raw_tracepoint(tp=where, fn_name=what))

    def probes(self) -> tuple[tuple[int, Attachment], ...]:
        """The kprobes, each with the descriptor of its perf event and the kernel's counts."""
        counts = kprobe_counts()
        probes = []
        for event, symbol, function, fd in self._probes:
            # BCC appends its own suffix to the event's name.
            found = [count for name, count in counts.items() if name.startswith(f"{event}_bcc_")]
            hits, misses = found[0] if found else (None, None)
            skipped = self._skipped(function)
            probes.append((fd, Attachment(symbol, function, hits, misses, skipped)))
        return tuple(probes)

    def attachments(self) -> tuple[Attachment, ...]:
        """All attachments, with the kernel's counts of the kprobes."""
        tracepoints = (replace(t, skipped=self._skipped(t.function)) for t in self._tracepoints)
        tracing = (
            replace(one, skipped=program_info(fd).recursion_misses) for one, fd, _ in self._tracing
        )
        return (*(probe for _, probe in self.probes()), *tracing, *tracepoints)

    def close(self) -> None:
        """Detach everything, unload programs and maps."""
        if self._object is None:
            return
        with _quiet():
            for event, _, _, probe in self._probes:
                self._lib.bpf_close_perf_event_fd(probe)
                self._lib.bpf_detach_kprobe(event.encode())
            for _, program, link in self._tracing:
                for fd in (link, program):
                    if fd >= 0:
                        os.close(fd)
            self._object.cleanup()
        self._probes.clear()
        self._tracing.clear()
        self._tracepoints.clear()
        self._object = None

    def _skipped(self, function: str) -> int:
        program = self._opened().load_func(function.encode(), ProgramType.KPROBE)  # loaded already
        return program_info(program.fd).recursion_misses

    def _opened(self) -> _Object:
        if self._object is None:
            raise ProbeError("capture programs: closed already", hint="report this as a fault")
        return self._object

    def _attach(self, name: str, function: str, attach: Callable[[_Object], None]) -> None:
        with _quiet() as said:
            try:
                attach(self._opened())
            except Exception as error:
                raise ProbeError(
                    f"tracepoint {name}: cannot be attached (got {_short(said(), error)})",
                    hint="the kernel needs this tracepoint, and tracefs mounted",
                ) from error
        self._tracepoints.append(Attachment(name, function))


def kprobe_counts() -> dict[str, tuple[int, int]]:
    """Hits and misses by event name, of the kprobes made through tracefs (``kprobe_profile``)."""
    for folder in TRACEFS:
        try:
            lines = (folder / "kprobe_profile").read_text().splitlines()
        except OSError:
            continue
        fields = (line.split() for line in lines)
        return {f[0]: (int(f[1]), int(f[2])) for f in fields if len(f) >= 3}
    return {}


@contextmanager
def _quiet() -> Iterator[Callable[[], str]]:
    """Keep what C code writes on descriptor 2; the yielded function tells what it was.

    The descriptor belongs to the whole process: blocks like this one are short and come one at a
    time, at start and at close.
    """
    with _stderr_lock, tempfile.TemporaryFile() as capture:
        if sys.stderr is not None:
            sys.stderr.flush()
        kept = os.dup(2)
        os.dup2(capture.fileno(), 2)

        def said() -> str:
            ctypes.CDLL(None).fflush(None)
            return os.pread(capture.fileno(), 1 << 20, 0).decode(errors="replace")

        try:
            yield said
        finally:
            ctypes.CDLL(None).fflush(None)
            os.dup2(kept, 2)
            os.close(kept)


def _short(said: str, error: Exception | None = None) -> str:
    """The lines of a compiler's or verifier's output that tell most: the last ones."""
    lines = [line for line in said.splitlines() if line.strip()]
    errors = [line for line in lines if "error:" in line]
    chosen = (errors or lines)[-MESSAGE_LINES_MAX:]
    return "; ".join([*([str(error)] if error else []), *chosen]) or "no reason given"
