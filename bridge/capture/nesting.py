"""The second copies of the fexit programs, and what both copies missed.

Twin of ``bpf/capture_fentry.h``. A copy works only while the first one is running on its CPU; it
finds that out by the first one's counter, whose address is learnt here.
"""

from __future__ import annotations

import mmap
import os
import platform
import struct
from collections.abc import Mapping

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


class Nesting:
    """Counts calls that neither copy saw."""

    def __init__(self, programs: ProbeObject) -> None:
        self._programs = programs
        self._firsts: dict[int, int] = {}  # descriptors by number of the function
        self._memory = mmap.mmap(programs.map_fd("steps"), mmap.PAGESIZE, prot=mmap.PROT_READ)
        self._missed: dict[int, int] = {}

    def learn(self, firsts: Mapping[int, int]) -> None:
        """Tell the second copies where the counters of these first ones are.

        ``firsts``: descriptors by number of the function; they must stay open as long as this is
        read. Raises ``ProbeError`` or ``KernelError``; second copies would then never work.
        """
        fd = self._programs.map_fd("guards")
        with KernelMap(os.dup(fd), map_info(fd, "map guards")) as guards:
            for number, program in firsts.items():
                guards.update(number.to_bytes(4, "little"), _GUARD.pack(0, program, 0))
            learn = self._programs.load("learn_guards", ProgramType.RAW_TRACEPOINT)
            test_run(learn, b"", repeat=0)
            for number, program in firsts.items():
                learnt = guards.lookup(number.to_bytes(4, "little")) or bytes(_GUARD.size)
                address, _, found = _GUARD.unpack(learnt)
                if not address or found != program_info(program).id:
                    raise ProbeError(
                        "mode fentry: a program was not found in the kernel's memory "
                        f"(got id {found})",
                        hint="use mode kprobe, and report the kernel's version",
                    )
        self._firsts.update(firsts)

    def steps(self) -> int:
        """Calls that the second copies took over."""
        return sum(self._steps_of(number) for number in self._firsts)

    def missed(self) -> dict[int, int]:
        """Calls that neither copy saw, by number of the function; they never fall."""
        for number, program in self._firsts.items():
            # The kernel's count comes first: what moves in between makes the difference too
            # small, and the next look sees it.
            refused = program_info(program).recursion_misses
            missed = refused - self._steps_of(number)
            self._missed[number] = max(self._missed.get(number, 0), missed)
        return dict(self._missed)

    def close(self) -> None:
        self._memory.close()

    def _steps_of(self, number: int) -> int:
        return int.from_bytes(self._memory[8 * number : 8 * number + 8], "little")
