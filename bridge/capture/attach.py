"""Which programs go where: compiles ``bpf/capture.bpf.c`` for a mode and attaches it.

Nothing is read through kernel headers: struct offsets come from the kernel's own BTF, addresses
from its symbol table.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bridge.capture.blindness import Blindness, blindness_defines
from bridge.capture.loader import TRACEFS, ProbeError, ProbeObject, read_source
from bridge.capture.nesting import Nesting, fentry_defines, learn_guards
from bridge.capture.source import Mode
from bridge.kernel.btf import KernelBtf
from bridge.kernel.headers import use_headers
from bridge.kernel.symbols import SymbolTable

RETURNS_AWAITED_MAX = 1024  # kretprobe instances: calls inside one function at one time
CALLS_AWAITED_MAX = 4096  # the same for bpf(2); the kernel's limit (KRETPROBE_MAXACTIVE_MAX)
_FUNCTIONS = (
    ("htab_map_update_elem", "on_update_entry", "on_update_return"),
    ("htab_map_delete_elem", "on_delete_entry", "on_delete_return"),
)
# In the order of enum guarded: entry, exit, and the exit's second copy.
_TRACED = (
    ("htab_map_update_elem", "on_update_fentry", "on_update_fexit", "on_update_again"),
    ("htab_map_delete_elem", "on_delete_fentry", "on_delete_fexit", "on_delete_again"),
)
_TRAMPOLINES = "bpf_trampoline_link_prog"
_SYSCALL_SYMBOLS = ("__x64_sys_bpf", "__arm64_sys_bpf")
CACHE = Path("/var/cache/mapbridge")
CALL_PROGRAMS = frozenset(("on_bpf_entry", "on_bpf_return", "on_enter_bpf", "on_exit_bpf"))
_OFFSETS = (
    ("bpf_map", "id"),
    ("task_struct", "files"),
    ("files_struct", "fdt"),
    ("fdtable", "max_fds"),
    ("fdtable", "fd"),
    ("file", "private_data"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a mode attaches on a kernel.

    ``functions`` are the map functions probed, by fentry and fexit if ``fentry``, else by kprobes;
    ``entry`` is the system call's symbol, or ``None`` when the tracepoints serve instead.
    """

    functions: tuple[str, ...]
    entry: str | None
    fentry: bool = False

    def defines(self, slots: int, cpus: int) -> dict[str, int]:
        """The ``-D`` constants of ``bpf/capture.bpf.c``."""
        parts = {
            "MB_WITH_FUNCTIONS": bool(self.functions) and not self.fentry,
            "MB_WITH_SYSCALL": self.entry is not None,
            "MB_WITH_TRACEPOINTS": self.entry is None,
        }
        defines = {part: 1 for part, wanted in parts.items() if wanted}
        defines |= {"MB_SLOTS": slots, "MB_CPUS": cpus}
        btf = KernelBtf.load()
        if self.fentry:
            defines |= fentry_defines(btf)
        elif self.functions:
            defines |= blindness_defines(btf)
        for struct, field in _OFFSETS:
            defines[f"MB_AT_{struct}_{field}".upper()] = btf.offset(struct, field)
        return defines


def make_plan(mode: Mode) -> Plan:
    """The plan for ``FENTRY``, ``KPROBE`` or ``SYSCALL``.

    Raises ``ProbeError``, or ``BtfError`` where there is no BTF, when the kernel lacks a part.

    For bpf(2), kprobes are preferred: the tracepoints make every system call of the machine slower.
    """
    if mode not in (Mode.FENTRY, Mode.KPROBE, Mode.SYSCALL):
        raise ProbeError(f"probes: no such mode (got {mode})", hint="use fentry, kprobe or syscall")
    functions = tuple(name for name, _, _ in _FUNCTIONS)
    symbols = SymbolTable.load().resolve((*functions, *_SYSCALL_SYMBOLS, _TRAMPOLINES))
    # A renamed form may take its arguments elsewhere: only the exact name will do.
    found = {name for name, symbol in symbols.items() if symbol and symbol.name == name}
    kprobes = has_kprobes()
    entry = next((name for name in _SYSCALL_SYMBOLS if kprobes and name in found), None)
    if mode is Mode.SYSCALL:
        return Plan((), entry)
    if mode is Mode.FENTRY:
        _check_tracing(functions, _TRAMPOLINES in found)
        return Plan(functions, entry, fentry=True)
    if not kprobes:
        raise ProbeError(
            "mode kprobe: this kernel has no kprobes (no kprobe_events in tracefs)",
            hint="use mode sweep, or a kernel with CONFIG_KPROBE_EVENTS and tracefs mounted",
        )
    absent = [name for name in functions if name not in found]
    if absent:
        raise ProbeError(
            f"mode kprobe: kernel functions not found (got no {', '.join(absent)})",
            hint="see that /proc/kallsyms is readable; else use mode sweep",
        )
    return Plan(functions, entry)


def _check_tracing(functions: tuple[str, ...], trampolines: bool) -> None:
    if not trampolines:
        raise ProbeError(
            f"mode fentry: this kernel has no trampolines for BPF (no {_TRAMPOLINES})",
            hint="use mode kprobe, or a kernel with CONFIG_BPF_JIT, CONFIG_FTRACE and BTF",
        )
    btf = KernelBtf.load()
    absent = [name for name in functions if not btf.has_function(name)]
    if absent:
        raise ProbeError(
            f"mode fentry: kernel functions not described by BTF (got no {', '.join(absent)})",
            hint="use mode kprobe",
        )


def attach(
    plan: Plan, slots: int, cache: Path = CACHE, more: Mapping[str, int] | None = None
) -> ProbeObject:
    """Compile and attach; merged kernel headers go below ``cache``.

    ``more``: constants beside those of the plan. On an error nothing stays attached.
    """
    use_headers(cache)
    programs = ProbeObject(read_source(), plan.defines(slots, possible_cpus()) | dict(more or {}))
    try:
        _attach_calls(programs, plan)
        if plan.fentry:
            _attach_traced(programs)
            return programs
        for symbol, entry, back in _FUNCTIONS:
            if symbol not in plan.functions:
                continue
            # The return first: an entry without its return would leave a stash behind.
            programs.attach_kprobe(symbol, back, on_return=True, instances=RETURNS_AWAITED_MAX)
            programs.attach_kprobe(symbol, entry, on_return=False)
    except BaseException:
        programs.close()
        raise
    return programs


def _attach_traced(programs: ProbeObject) -> None:
    firsts = [
        programs.attach_tracing(symbol, leave, on_return=True) for symbol, _, leave, _ in _TRACED
    ]
    if programs.has("guards"):
        learn_guards(programs, firsts)
        for symbol, _, _, again in _TRACED:
            programs.attach_tracing(symbol, again, on_return=True)
    for symbol, enter, _, _ in _TRACED:
        programs.attach_tracing(symbol, enter, on_return=False)


def _attach_calls(programs: ProbeObject, plan: Plan) -> None:
    if plan.entry is None:
        programs.attach_tracepoint("syscalls:sys_exit_bpf", "on_exit_bpf")
        programs.attach_tracepoint("syscalls:sys_enter_bpf", "on_enter_bpf")
        return
    programs.attach_kprobe(plan.entry, "on_bpf_return", on_return=True, instances=CALLS_AWAITED_MAX)
    programs.attach_kprobe(plan.entry, "on_bpf_entry", on_return=False)


def attach_blindness(programs: ProbeObject) -> Blindness | None:
    """Count what the function probes cannot see; ``None`` where the source has no such part."""
    if not programs.has("hit_counters"):
        return None
    entries = {entry for _, entry, _ in _FUNCTIONS}
    return Blindness(programs, [fd for fd, one in programs.probes() if one.function in entries])


def open_nesting(programs: ProbeObject) -> Nesting | None:
    """What both copies of the fexit programs missed; ``None`` where there are none."""
    if not programs.has("steps"):
        return None
    return Nesting(programs, [programs.tracing_fd(leave) for _, _, leave, _ in _TRACED])


def has_kprobes() -> bool:
    """Whether kprobes can be made through tracefs."""
    return any(os.access(folder / "kprobe_events", os.F_OK) for folder in TRACEFS)


def possible_cpus() -> int:
    """One more than the highest number that a CPU can have."""
    text = Path("/sys/devices/system/cpu/possible").read_text().strip()
    return int(text.replace(",", "-").split("-")[-1]) + 1
