"""Operations that the function probes cannot see, counted. Twin of ``bpf/capture_blindness.h``.

Softirqs that interrupt bpf(2) work on a map are blind, and so are tasks that preempt one in the
midst of it: the kernel skips programs on kprobes there and says nothing. What it does count are the
hits of the kprobes themselves, per CPU.
"""

from __future__ import annotations

import mmap
import os
import struct
from collections.abc import Sequence

from bridge.capture.loader import ProbeObject, ProgramType
from bridge.kernel.btf import BtfError, KernelBtf
from bridge.kernel.errors import KernelError
from bridge.kernel.maps import KernelMap, map_info
from bridge.kernel.programs import test_run
from bridge.kernel.symbols import variable_addresses

_SYMBOLS = {"MB_AT_PROG_ACTIVE": "bpf_prog_active", "MB_AT_PER_CPU_OFFSET": "__per_cpu_offset"}
_OFFSETS = (
    ("perf_event", "tp_event"),
    ("trace_probe_event", "call"),
    ("trace_probe_event", "probes"),
    ("trace_probe", "list"),
    ("trace_kprobe", "tp"),
    ("trace_kprobe", "nhit"),
)
_COUNTER = struct.Struct("=QIIQ")  # struct hit_counter
COUNTERS_MAX = 10  # HIT_COUNTERS


def blindness_defines(btf: KernelBtf) -> dict[str, int]:
    """The ``-D`` constants of that part; none where the kernel does not tell them.

    Addresses of variables are there with CONFIG_KALLSYMS_ALL only.
    """
    addresses = variable_addresses(_SYMBOLS.values())
    if len(addresses) < len(_SYMBOLS):
        return {}
    defines = {"MB_WITH_BLINDNESS": 1}
    defines |= {define: addresses[name] for define, name in _SYMBOLS.items()}
    try:
        for holder, field in _OFFSETS:
            defines[f"MB_AT_{holder}_{field}".upper()] = btf.offset(holder, field)
    except BtfError:
        return {}
    return defines


class Blindness:
    """The counter, once it has been shown to read the kernel's right numbers."""

    def __init__(self, programs: ProbeObject) -> None:
        self._programs = programs
        self._memory: mmap.mmap | None = None
        self._failed = False
        self._learnt = 0  # events

    def learn(self, events: Sequence[int]) -> None:
        """Count at all of these probes from now on.

        ``events``: the perf event descriptors of the entry probes, at most ``COUNTERS_MAX``, those
        that were learnt before in front. Where the addresses cannot be learnt, ``read`` answers
        ``None`` from then on.
        """
        assert len(events) <= COUNTERS_MAX
        if self._failed:
            return
        self._failed = not self._find_counters(events)
        if self._failed:
            self.close()
        elif self._memory is None:
            self._programs.attach_raw_tracepoint("softirq_exit", "on_softirq_exit")
            self._programs.attach_raw_tracepoint("softirq_entry", "on_softirq_entry")
            self._programs.attach_raw_tracepoint("sched_switch", "on_switch")
            blind = self._programs.map_fd("blind")
            self._memory = mmap.mmap(blind, mmap.PAGESIZE, prot=mmap.PROT_READ)

    def _find_counters(self, events: Sequence[int]) -> bool:
        programs = self._programs
        fd = programs.map_fd("hit_counters")
        with KernelMap(os.dup(fd), map_info(fd, "map hit_counters")) as counters:
            # Those in use keep their address: a softirq may be between its entry and its exit.
            for row, event in enumerate(events[self._learnt :], self._learnt):
                counters.update(row.to_bytes(4, "little"), _COUNTER.pack(0, event, 0, 0))
            before = _hits(programs, events)
            try:
                test_run(
                    programs.load("learn_hit_counters", ProgramType.RAW_TRACEPOINT), b"", repeat=0
                )
            except KernelError:
                return False  # no test runs of raw tracepoints before Linux 5.10
            after = _hits(programs, events)
            for row, (low, high) in enumerate(zip(before, after, strict=True)):
                learnt = counters.lookup(row.to_bytes(4, "little"))
                address, _, _, found = _COUNTER.unpack(learnt or bytes(_COUNTER.size))
                if not address or not low <= found <= high:
                    return False
        self._learnt = len(events)
        return True

    def read(self) -> list[int] | None:
        """Operations that were not seen, by probe as in ``learn``; ``None``: not known."""
        if self._memory is None:
            return None
        counts = struct.unpack_from(f"={COUNTERS_MAX}Q", self._memory)
        return list(counts[: self._learnt])

    def close(self) -> None:
        if self._memory is not None:
            self._memory.close()
            self._memory = None


def _hits(programs: ProbeObject, events: Sequence[int]) -> list[int]:
    """What the kernel says of those probes' hits."""
    hits = {event: one.hits or 0 for event, one in programs.probes()}
    return [hits[event] for event in events]
