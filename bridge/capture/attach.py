"""Which programs go where: compiles ``bpf/capture.bpf.c`` for a mode and attaches it.

Nothing is read through kernel headers: struct offsets come from the kernel's own BTF, addresses
from its symbol table. Programs at the functions of a map type are attached when the first map of
that type is watched, so that the others pay nothing.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bridge.capture.blindness import Blindness, blindness_defines
from bridge.capture.functions import FUNCTIONS, MapFunction, functions_of
from bridge.capture.loader import TRACEFS, ProbeError, ProbeObject, read_source
from bridge.capture.nesting import Nesting, fentry_defines
from bridge.capture.source import Mode
from bridge.kernel.btf import KernelBtf
from bridge.kernel.cpus import cpu_numbers
from bridge.kernel.headers import use_headers
from bridge.kernel.maptypes import type_name
from bridge.kernel.symbols import SymbolTable
from bridge.model import Op

RETURNS_AWAITED_MAX = 1024  # kretprobe instances: calls inside one function at one time
CALLS_AWAITED_MAX = 4096  # the same for bpf(2); the kernel's limit (KRETPROBE_MAXACTIVE_MAX)
_KPROBES = {
    Op.UPDATE: ("on_update_entry", "on_update_return"),
    Op.DELETE: ("on_delete_entry", "on_delete_return"),
    Op.EVICT: ("on_evict_entry", "on_evict_return"),
}
_TRAMPOLINES = "bpf_trampoline_link_prog"
_SYSCALL_SYMBOLS = ("__x64_sys_bpf", "__arm64_sys_bpf")
CACHE = Path("/var/cache/mapbridge")
CALL_PROGRAMS = frozenset(("on_bpf_entry", "on_bpf_return", "on_enter_bpf", "on_exit_bpf"))
_OFFSETS = (
    ("bpf_map", "id"),
    ("htab_elem", "lru_node"),
    ("htab_elem", "key"),
    ("task_struct", "files"),
    ("files_struct", "fdt"),
    ("fdtable", "max_fds"),
    ("fdtable", "fd"),
    ("file", "private_data"),
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a mode attaches on a kernel.

    ``mode`` is one with probes; ``entry`` is the system call's symbol, or ``None`` when the
    tracepoints serve instead.
    """

    mode: Mode
    entry: str | None

    @property
    def fentry(self) -> bool:
        return self.mode is Mode.FENTRY

    def defines(self, slots: int, cpus: int) -> dict[str, int]:
        """The ``-D`` constants of ``bpf/capture.bpf.c``."""
        parts = {
            "MB_WITH_FUNCTIONS": self.mode is Mode.KPROBE,
            "MB_WITH_SYSCALL": self.entry is not None,
            "MB_WITH_TRACEPOINTS": self.entry is None,
        }
        defines = {part: 1 for part, wanted in parts.items() if wanted}
        defines |= {"MB_SLOTS": slots, "MB_CPUS": cpus}
        btf = KernelBtf.load()
        if self.fentry:
            defines |= fentry_defines(btf)
        elif self.mode is Mode.KPROBE:
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
    symbols = SymbolTable.load().resolve((*_SYSCALL_SYMBOLS, _TRAMPOLINES))
    found = {name for name, symbol in symbols.items() if symbol and symbol.name == name}
    kprobes = has_kprobes()
    entry = next((name for name in _SYSCALL_SYMBOLS if kprobes and name in found), None)
    if mode is Mode.FENTRY and _TRAMPOLINES not in found:
        raise ProbeError(
            f"mode fentry: this kernel has no trampolines for BPF (no {_TRAMPOLINES})",
            hint="use mode kprobe, or a kernel with CONFIG_BPF_JIT, CONFIG_FTRACE and BTF",
        )
    if mode is Mode.KPROBE and not kprobes:
        raise ProbeError(
            "mode kprobe: this kernel has no kprobes (no kprobe_events in tracefs)",
            hint="use mode sweep, or a kernel with CONFIG_KPROBE_EVENTS and tracefs mounted",
        )
    return Plan(mode, entry)


def attach(
    plan: Plan, slots: int, cache: Path = CACHE, more: Mapping[str, int] | None = None
) -> ProbeObject:
    """Compile, and attach to the system call; merged kernel headers go below ``cache``.

    ``more``: constants beside those of the plan. On an error nothing stays attached.
    """
    use_headers(cache)
    programs = ProbeObject(read_source(), plan.defines(slots, cpu_numbers()) | dict(more or {}))
    try:
        _attach_calls(programs, plan)
    except BaseException:
        programs.close()
        raise
    return programs


class FunctionProbes:
    """The programs at the map functions, and what is known of calls that they did not see."""

    def __init__(self, programs: ProbeObject, plan: Plan) -> None:
        self._programs = programs
        self._mode = plan.mode
        self._attached: set[int] = set()  # numbers of functions
        self._entries: list[int] = []  # the same, in the order of their kprobes
        self._blindness = Blindness(programs) if programs.has("hit_counters") else None
        self._nesting = Nesting(programs) if programs.has("steps") else None

    def cover(self, map_type: int) -> None:
        """Attach to the functions of a map type, once. In mode syscall there is nothing to do.

        Raises ``ProbeError`` when the kernel lacks one; what was attached stays.
        """
        if self._mode is Mode.SYSCALL:
            return
        wanted = functions_of(map_type, by_programs=self._mode is Mode.KPROBE)
        if not wanted:
            raise ProbeError(
                f"mode {self._mode}: the probes do not cover maps of type {type_name(map_type)}",
                hint="use mode sweep for this map",
            )
        fresh = [one for one in wanted if one.number not in self._attached]
        if not fresh:
            return
        self._check(fresh, map_type)
        if self._mode is Mode.FENTRY:
            self._attach_traced(fresh)
        else:
            self._attach_kprobes(fresh)
        self._attached.update(one.number for one in fresh)

    def blind(self) -> int | None:
        """Operations that softirqs and preempting tasks did unseen; ``None``: not known."""
        counts = self._blindness.read() if self._blindness is not None else None
        return None if counts is None else sum(counts)

    def nested(self) -> int | None:
        """Calls that second copies took over; ``None`` where there are none."""
        return self._nesting.steps() if self._nesting is not None else None

    def missed(self) -> dict[int, int]:
        """Calls on any map that no program saw, by number of the function; they never fall.

        The kernel counts misses per probe; of a function's two probes the one that missed more
        tells.
        """
        if self._mode is Mode.FENTRY:
            return self._nesting.missed() if self._nesting is not None else {}
        probes = [one for _, one in self._programs.probes()]
        missed = {
            one.number: max((p.misses or 0 for p in probes if p.target == one.symbol), default=0)
            for one in FUNCTIONS
            if one.number in self._attached
        }
        counts = self._blindness.read() if self._blindness is not None else None
        for number, count in zip(self._entries, counts or (), strict=False):
            missed[number] += count
        return missed

    def close(self) -> None:
        for part in (self._blindness, self._nesting):
            if part is not None:
                part.close()

    def _check(self, wanted: Sequence[MapFunction], map_type: int) -> None:
        """A renamed form may take its arguments elsewhere: only the exact name will do."""
        names = [one.symbol for one in wanted]
        if self._mode is Mode.FENTRY:
            btf = KernelBtf.load()
            absent = [name for name in names if not btf.has_function(name)]
        else:
            found = SymbolTable.load().resolve(names)
            absent = [name for name in names if (s := found[name]) is None or s.name != name]
        if absent:
            raise ProbeError(
                f"mode {self._mode}: kernel functions of {type_name(map_type)} maps not found "
                f"(got no {', '.join(absent)})",
                hint="see that /proc/kallsyms is readable; else use mode sweep",
            )

    def _attach_kprobes(self, wanted: Sequence[MapFunction]) -> None:
        for one in wanted:
            enter, back = _KPROBES[one.op]
            # The return first: an entry without its return would leave a stash behind.
            self._programs.attach_kprobe(
                one.symbol, back, on_return=True, instances=RETURNS_AWAITED_MAX
            )
            self._programs.attach_kprobe(one.symbol, enter, on_return=False)
            self._entries.append(one.number)
        if self._blindness is not None:
            entries = {enter for enter, _ in _KPROBES.values()}
            self._blindness.learn(
                [fd for fd, one in self._programs.probes() if one.function in entries]
            )

    def _attach_traced(self, wanted: Sequence[MapFunction]) -> None:
        programs = self._programs
        firsts = {
            one.number: programs.attach_tracing(one.symbol, f"leave_{one.symbol}", on_return=True)
            for one in wanted
        }
        if self._nesting is not None:
            self._nesting.learn(firsts)
            for one in wanted:
                programs.attach_tracing(one.symbol, f"again_{one.symbol}", on_return=True)
        for one in wanted:
            programs.attach_tracing(one.symbol, f"enter_{one.symbol}", on_return=False)


def _attach_calls(programs: ProbeObject, plan: Plan) -> None:
    if plan.entry is None:
        programs.attach_tracepoint("syscalls:sys_exit_bpf", "on_exit_bpf")
        programs.attach_tracepoint("syscalls:sys_enter_bpf", "on_enter_bpf")
        return
    programs.attach_kprobe(plan.entry, "on_bpf_return", on_return=True, instances=CALLS_AWAITED_MAX)
    programs.attach_kprobe(plan.entry, "on_bpf_entry", on_return=False)


def has_kprobes() -> bool:
    """Whether kprobes can be made through tracefs."""
    return any(os.access(folder / "kprobe_events", os.F_OK) for folder in TRACEFS)
