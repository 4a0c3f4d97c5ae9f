"""The second copies of the fexit programs, and what both copies missed.

Twin of ``bpf/capture_fentry.h``. A copy works only while the first one is running on its CPU; it
finds that out by the first one's counter, whose address is learnt here.
"""

from __future__ import annotations

import mmap
import os
import platform
import struct
from collections.abc import Sequence

from bridge.capture.loader import ProbeError, ProbeObject, ProgramType
from bridge.kernel.btf import KernelBtf
from bridge.kernel.maps import KernelMap, map_info
from bridge.kernel.programs import program_info, test_run
from bridge.kernel.symbols import variable_addresses

_GUARD = struct.Struct("=QII")  # struct guard
_HINT = "use mode kprobe; addresses of variables need CONFIG_KALLSYMS_ALL and root"


def fentry_defines(btf: KernelBtf) -> dict[str, int]:
    """The ``-D`` constants of ``bpf/capture_fentry.h``.

    Raises ``ProbeError`` where the kernel does not tell its count of interrupts being served: own
    writes could not be told from those of a softirq that interrupts them.
    """
    if platform.machine() != "x86_64":
        raise ProbeError(
            f"mode fentry: only x86_64 is supported (got {platform.machine()})",
            hint="use mode kprobe",
        )
    names = ("__preempt_count", "pcpu_hot", "bpf_prog_active", "__per_cpu_offset")
    found = variable_addresses(names)
    if "__preempt_count" in found:
        count = found["__preempt_count"]
    elif "pcpu_hot" in found and btf.has_member("pcpu_hot", "preempt_count"):  # Linux 6.2 to 6.14
        count = found["pcpu_hot"] + btf.offset("pcpu_hot", "preempt_count")
    else:
        raise ProbeError("mode fentry: no address of the preemption count", hint=_HINT)
    absent = [name for name in names[2:] if name not in found]
    if absent:
        raise ProbeError(f"mode fentry: no address of {', '.join(absent)}", hint=_HINT)
    defines = {
        "MB_WITH_FENTRY": 1,
        "MB_AT_PREEMPT_COUNT": count,
        "MB_AT_PROG_ACTIVE": found["bpf_prog_active"],
        "MB_AT_PER_CPU_OFFSET": found["__per_cpu_offset"],
    }
    if btf.has_member("bpf_prog", "active"):  # since Linux 5.12
        for holder, field in (("bpf_prog", "active"), ("bpf_prog", "aux"), ("bpf_prog_aux", "id")):
            defines[f"MB_AT_{holder}_{field}".upper()] = btf.offset(holder, field)
    return defines


def learn_guards(programs: ProbeObject, firsts: Sequence[int]) -> None:
    """Tell the second copies where the counters of the first are.

    ``firsts``: descriptors of the first copies, in the order of ``enum guarded``. Raises
    ``ProbeError`` or ``KernelError``; second copies would then never work.
    """
    fd = programs.map_fd("guards")
    with KernelMap(os.dup(fd), map_info(fd, "map guards")) as guards:
        for row, program in enumerate(firsts):
            guards.update(row.to_bytes(4, "little"), _GUARD.pack(0, program, 0))
        test_run(programs.load("learn_guards", ProgramType.RAW_TRACEPOINT), b"", repeat=0)
        for row, program in enumerate(firsts):
            learnt = guards.lookup(row.to_bytes(4, "little")) or bytes(_GUARD.size)
            address, _, found = _GUARD.unpack(learnt)
            if not address or found != program_info(program).id:
                raise ProbeError(
                    f"mode fentry: a program was not found in the kernel's memory (got id {found})",
                    hint="use mode kprobe, and report the kernel's version",
                )


class Nesting:
    """Counts calls that neither copy saw."""

    def __init__(self, programs: ProbeObject, firsts: Sequence[int]) -> None:
        """``firsts`` as for ``learn_guards``; they must stay open as long as this is read."""
        self._firsts = tuple(firsts)
        self._memory = mmap.mmap(programs.map_fd("steps"), mmap.PAGESIZE, prot=mmap.PROT_READ)
        self._missed = [0] * len(self._firsts)

    def steps(self) -> int:
        """Calls that the second copies took over."""
        return sum(self._steps_of(row) for row in range(len(self._firsts)))

    def missed(self) -> int:
        """Operations on any plain hash map that were not seen; never falls."""
        for row, program in enumerate(self._firsts):
            # The kernel's count comes first: what moves in between makes the difference too
            # small, and the next look sees it.
            refused = program_info(program).recursion_misses
            self._missed[row] = max(self._missed[row], refused - self._steps_of(row))
        return sum(self._missed)

    def close(self) -> None:
        self._memory.close()

    def _steps_of(self, row: int) -> int:
        return int.from_bytes(self._memory[8 * row : 8 * row + 8], "little")
