"""What this kernel and this process can do. Three answers: yes, no, and not known.

"Not known" is an answer of its own: a missing capability hides what the kernel has, and to say no
would send an operator after the wrong fault. Probes only look, or make a map and drop it; they
mount and change nothing.
"""

from __future__ import annotations

import enum
import errno
import functools
import platform
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bridge.kernel import headers, syscall
from bridge.kernel.btf import MAGIC
from bridge.kernel.elements import address_of
from bridge.kernel.errors import KernelError
from bridge.kernel.maps import create_map
from bridge.kernel.maptypes import MapType
from bridge.kernel.syscall import Command

KERNEL_MIN = (5, 10)
MEMLOCK_FREE = (5, 11)  # from here on maps are charged to the memory cgroup instead


class Answer(enum.Enum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "unknown"


class Capability(enum.IntEnum):
    """Bits of ``CapEff`` in ``/proc/self/status``: those that the bridge may need."""

    CAP_NET_BIND_SERVICE = 10
    CAP_NET_ADMIN = 12
    CAP_IPC_LOCK = 14
    CAP_SYS_ADMIN = 21
    CAP_SYS_RESOURCE = 24
    CAP_SYSLOG = 34
    CAP_PERFMON = 38
    CAP_BPF = 39


@dataclass(frozen=True, slots=True)
class Feature:
    """One finding. ``reason`` says what was seen; ``mend`` is empty where nothing is amiss."""

    name: str
    answer: Answer
    reason: str
    why_it_matters: str
    mend: str = ""

    @property
    def present(self) -> bool:
        return self.answer is Answer.YES


@dataclass(frozen=True, slots=True)
class _Finding:
    answer: Answer
    reason: str
    mend: str = ""


def _yes(reason: str) -> _Finding:
    return _Finding(Answer.YES, reason)


def _no(reason: str, mend: str) -> _Finding:
    return _Finding(Answer.NO, reason, mend)


def _unknown(reason: str, mend: str) -> _Finding:
    return _Finding(Answer.UNKNOWN, reason, mend)


def kernel_version(release: str = "") -> tuple[int, int]:
    """Major and minor number of a release such as ``6.1.0-56-amd64``; (0, 0) when unreadable."""
    match = re.match(r"(\d+)\.(\d+)", release or platform.release())
    return (int(match[1]), int(match[2])) if match else (0, 0)


class Probes:
    """The probes, over the file tree at ``root``."""

    def __init__(self, root: Path = Path("/"), release: str = "") -> None:
        self._root = root
        self._release = release or platform.release()

    def all(self) -> tuple[Feature, ...]:
        """Every finding, in the order in which a reader wants them."""
        table: tuple[tuple[str, str, Callable[[], _Finding]], ...] = (
            ("kernel version", "the bridge is tested from Linux 5.10 on", self.version),
            *((cap.name, use, self._capability_probe(cap)) for cap, use in _CAPABILITY_USE.items()),
            ("locked memory", "before Linux 5.11 maps count as locked memory", self.memlock),
            ("lockdown", "confidentiality mode forbids reading kernel memory", self.lockdown),
            ("batch commands", "without them each entry costs a system call", self.batch),
            ("ring buffer", "carries the captured changes in order", self.ring_buffer),
            ("bpf file system", "maps are found by their pins", self.bpffs),
            ("kernel BTF", "tells where the kernel's structs have their members", self.btf),
            ("kprobes", "see what BPF programs write to maps", self.kprobes),
            ("tracefs", "needed to attach to tracepoints", self.tracefs),
            ("syscall tracepoints", "see what processes write to maps", self.syscall_tracepoints),
            ("kernel symbols", "tell which function a probe must name", self.symbols),
            ("kernel headers", "the capture program is compiled on the node", self.headers),
        )
        found = []
        for name, why, probe in table:
            finding = probe()
            found.append(Feature(name, finding.answer, finding.reason, why, finding.mend))
        return tuple(found)

    # --- process ------------------------------------------------------------------------------

    def version(self) -> _Finding:
        version = kernel_version(self._release)
        if version >= KERNEL_MIN:
            return _yes(f"Linux {self._release}")
        return _no(f"Linux {self._release}", "use Linux 5.10 or later")

    def capability(self, cap: Capability) -> _Finding:
        status = self._read("proc/self/status")
        match = re.search(r"^CapEff:\s*([0-9a-f]+)", status or "", re.MULTILINE)
        if match is None:
            return _unknown("/proc/self/status has no CapEff", "mount /proc")
        held = int(match[1], 16)
        if held >> cap & 1:
            return _yes("held")
        # CAP_BPF and CAP_PERFMON were cut out of CAP_SYS_ADMIN, which still implies them.
        if cap in (Capability.CAP_BPF, Capability.CAP_PERFMON) and (
            held >> Capability.CAP_SYS_ADMIN & 1
        ):
            return _yes("implied by CAP_SYS_ADMIN")
        return _no("not held", f"run as root, or give the service AmbientCapabilities={cap.name}")

    def _capability_probe(self, cap: Capability) -> Callable[[], _Finding]:
        return lambda: self.capability(cap)

    def memlock(self) -> _Finding:
        if kernel_version(self._release) >= MEMLOCK_FREE:
            return _yes("not limited by this kernel")
        soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        if soft == resource.RLIM_INFINITY:
            return _yes("unlimited")
        return _no(f"{soft} bytes", "give the service LimitMEMLOCK=infinity")

    # --- kernel -------------------------------------------------------------------------------

    def lockdown(self) -> _Finding:
        state = self._read("sys/kernel/security/lockdown")
        if state is None:
            security = self._root / "sys/kernel/security"
            if security.is_dir() and any(security.iterdir()):
                return _yes("not built into this kernel")
            return _unknown(
                "securityfs is not mounted",
                "mount -t securityfs securityfs /sys/kernel/security",
            )
        if "[confidentiality]" in state:
            return _no("confidentiality", "boot with lockdown=integrity, or use mode sweep")
        return _yes(state.strip())

    def batch(self) -> _Finding:
        def probe() -> _Finding:
            rows = np.zeros((1, 4), np.uint8)
            at = address_of(rows)
            with create_map(MapType.HASH, 4, 4, 1, name="probe_batch") as table:
                code, done = syscall.batch(
                    Command.MAP_UPDATE_BATCH, table.fileno(), 1, keys=at, values=at
                )
            if (code, done) == (0, 1):
                return _yes("an update batch went through")
            return _no(f"errno {code}", "use Linux 5.6 or later")

        return self._guarded(probe, "use Linux 5.6 or later")

    def ring_buffer(self) -> _Finding:
        def probe() -> _Finding:
            create_map(MapType.RINGBUF, 0, 0, resource.getpagesize(), name="probe_ring").close()
            return _yes("one could be made")

        return self._guarded(probe, "use Linux 5.8 or later; perf buffers serve instead")

    def _guarded(self, probe: Callable[[], _Finding], mend: str) -> _Finding:
        try:
            return probe()
        except KernelError as error:
            if error.errno in (errno.EPERM, errno.EACCES, errno.ENOMEM, errno.EMFILE):
                return _unknown(str(error), error.hint)
            return _no(str(error), mend)

    def bpffs(self) -> _Finding:
        mounts = self._read("proc/self/mounts")
        if mounts is None:
            return _unknown("/proc/self/mounts is not readable", "mount /proc")
        places = [row[1] for row in map(str.split, mounts.splitlines()) if row[2:3] == ["bpf"]]
        if places:
            return _yes(f"mounted at {', '.join(places)}")
        return _no("not mounted", "mount -t bpf bpf /sys/fs/bpf")

    def btf(self) -> _Finding:
        path = self._root / "sys/kernel/btf/vmlinux"
        mend = "use a kernel built with CONFIG_DEBUG_INFO_BTF=y"
        try:
            with path.open("rb") as file:
                head = file.read(2)
        except FileNotFoundError:
            if (self._root / "sys/kernel").is_dir():
                return _no(f"{path} is not there", mend)
            return _unknown("/sys is not mounted", "mount /sys")
        except OSError as error:
            return _unknown(f"{path}: {error.strerror}", "run as root")
        if int.from_bytes(head, "little") != MAGIC and int.from_bytes(head, "big") != MAGIC:
            return _no(f"{path} is not BTF", mend)
        return _yes(str(path))

    def kprobes(self) -> _Finding:
        units = self._root / "sys/bus/event_source/devices"
        if (units / "kprobe").exists():
            return _yes("the kernel has the kprobe event source")
        for folder in self._tracefs_folders():
            if (folder / "kprobe_events").exists():
                return _yes(f"{folder}/kprobe_events is there")
        if units.is_dir():
            return _no(
                "the kernel has no kprobe event source",
                "use a kernel built with CONFIG_KPROBES=y and CONFIG_KPROBE_EVENTS=y",
            )
        return _unknown("/sys is not mounted", "mount /sys")

    def tracefs(self) -> _Finding:
        for folder in self._tracefs_folders():
            if self._is_dir(folder / "events"):
                return _yes(f"mounted at {folder}")
        known = self._read("proc/filesystems")
        if known is None:
            return _unknown("/proc/filesystems is not readable", "mount /proc")
        if not re.search(r"\btracefs$", known, re.MULTILINE):
            return _no("this kernel has no tracefs", "use a kernel built with CONFIG_FTRACE=y")
        if self._hidden():
            return _unknown("not readable for this user", "run as root")
        return _no("not mounted", "mount -t tracefs tracefs /sys/kernel/tracing")

    def syscall_tracepoints(self) -> _Finding:
        mounted = self.tracefs()
        if mounted.answer is not Answer.YES:
            return _unknown(f"tracefs: {mounted.reason}", mounted.mend)
        for folder in self._tracefs_folders():
            if self._is_dir(folder / "events/syscalls/sys_enter_bpf"):
                return _yes("sys_enter_bpf is there")
        return _no("sys_enter_bpf is not there", "use a kernel built with CONFIG_FTRACE_SYSCALLS=y")

    def symbols(self) -> _Finding:
        try:
            with (self._root / "proc/kallsyms").open("rb") as file:
                first = [file.readline().split(b" ", 1)[0] for _ in range(64)]
        except OSError as error:
            return _no(f"/proc/kallsyms: {error.strerror}", "use CONFIG_KALLSYMS=y")
        if any(address.strip(b"0") for address in first):
            return _yes("names and addresses are shown")
        return _unknown("addresses are hidden", "sysctl kernel.kptr_restrict=1 and run as root")

    def headers(self) -> _Finding:
        modules, sources = self._root / "lib/modules", self._root / "usr/src"
        native = headers.native_headers(self._release, modules)
        if native is not None:
            return _yes(str(native))
        split = headers.split_headers(sources)
        if split is not None:
            return _yes(f"{split.specific} (of another version, which serves)")
        return _no(
            f"none in {modules} and {sources}",
            "install the kernel's header package, or mount /lib/modules and /usr/src",
        )

    # --- files --------------------------------------------------------------------------------

    def _tracefs_folders(self) -> tuple[Path, Path]:
        return (
            self._root / "sys/kernel/tracing",
            self._root / "sys/kernel/debug/tracing",
        )

    def _hidden(self) -> bool:
        for folder in self._tracefs_folders():
            try:
                (folder / "events").stat()
            except PermissionError:
                return True
            except OSError:
                continue
        return False

    def _is_dir(self, path: Path) -> bool:
        try:
            return path.is_dir()
        except PermissionError:
            return False

    def _read(self, path: str) -> str | None:
        try:
            return (self._root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


_CAPABILITY_USE = {
    Capability.CAP_BPF: "needed to make maps and load programs",
    Capability.CAP_PERFMON: "needed to attach probes",
    Capability.CAP_NET_ADMIN: "needed by networking programs, those of the self-test included",
    Capability.CAP_SYS_ADMIN: "needed to open maps by name or id",
}


@functools.cache
def probe_all() -> tuple[Feature, ...]:
    """All findings on this machine, probed once. ``probe_all.cache_clear()`` forgets them."""
    return Probes().all()


def feature(name: str) -> Feature:
    """One finding by its name. Raises KeyError."""
    for found in probe_all():
        if found.name == name:
            return found
    raise KeyError(name)
