"""The writing programs of the kernel matrix: one text of C for all map types, told what to do.

An *order* says which map, which action, and how many keys from where on. Each run of a program
carries out one of them, whoever makes it run.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

from bridge.capture.loader import ProbeObject
from bridge.kernel.maps import KernelMap, MapFlag, map_info
from tests.vm.features import kernel_version
from tests.vm.matrix.plan import ENTRIES, KINDS, SMALL_ENTRIES, Action, Kind, is_traceable

ORDER = struct.Struct("=6IQ")  # struct order
_NUMBERS = {
    Action.INSERT: 0,
    Action.OVERWRITE: 0,
    Action.EVICT: 0,
    Action.REFUSED: 1,
    Action.DELETE: 2,
    Action.DELETE_NONE: 2,
    Action.IN_PLACE: 3,
}
_HEAD = """
struct order { u32 target, action, next, left, thread, spare; u64 base; };
struct key { u32 prefix, number; };
BPF_F_TABLE("array", u32, struct order, orders, 1, BPF_F_MMAPABLE);
"""
_CASE = """
    if (order->target == TARGET) {
        KEY;
        if (order->action == 0)
            NAME.update(&key, &value);
        else if (order->action == 1)
            NAME.insert(&key, &value);
        DELETE
        else if (order->action == 3) {
            u64 *held = NAME.lookup(&key);
            if (held)
                *held = value;
        }
    }
"""
_BODY = """
static __always_inline int OBEY(u32 thread)
{
    u32 zero = 0;
    struct order *order = orders.lookup(&zero);

    if (!order || !order->left || order->thread != thread)
        return 1;
    u32 number = order->next++;
    u64 value = order->base + number;
    CASES
    order->left--;
    return 1;
}
"""
_PROGRAMS = """
int as_classifier(void *packet) { return obey(0); }
int as_xdp(void *packet) { return obey(0); }
int as_tracepoint(void *context) { return obey_traced((u32)bpf_get_current_pid_tgid()); }
"""


@dataclass(frozen=True, slots=True)
class Order:
    """``thread``: whose system calls set a tracepoint's program off; 0 for all other programs."""

    target: int
    action: Action
    first: int
    count: int
    base: int
    thread: int = 0

    def pack(self) -> bytes:
        number = _NUMBERS[self.action]
        return ORDER.pack(self.target, number, self.first, self.count, self.thread, 0, self.base)


class Orders:
    """The one order of a program, in its own memory.

    To look at it by bpf(2) would blind the kprobes on that processor, and with them the mode that
    is looked at.
    """

    def __init__(self, orders: KernelMap) -> None:
        self._memory = mmap.mmap(orders.fileno(), mmap.PAGESIZE)

    def give(self, order: Order) -> None:
        """To be called only when the last one is carried out."""
        self._memory[: ORDER.size] = order.pack()

    def left(self) -> int:
        """How much of it is still to be done."""
        return int(ORDER.unpack_from(self._memory)[3])

    def close(self) -> None:
        self._memory.close()


def _targets() -> list[tuple[Kind, int]]:
    """The maps, by their number: one of each kind, then the small ones of the LRU kinds."""
    full = [(kind, ENTRIES) for kind in KINDS]
    return full + [(kind, SMALL_ENTRIES) for kind in KINDS if kind.is_lru]


def _declare(number: int, kind: Kind, entries: int) -> str:
    key = "u32" if kind.is_array else "struct key"
    flags = "BPF_F_NO_PREALLOC" if kind.flags & MapFlag.NO_PREALLOC else "0"
    return f'BPF_F_TABLE("{kind.bcc}", {key}, u64, target{number}, {entries}, {flags});\n'


def _case(number: int, kind: Kind) -> str:
    key = "u32 key = number" if kind.is_array else "struct key key = {32, number}"
    delete = "" if kind.is_array else "else if (order->action == 2)\n    NAME.delete(&key);"
    text = _CASE.replace("TARGET", str(number)).replace("KEY", key).replace("DELETE", delete)
    return text.replace("NAME", f"target{number}")


def _function(name: str, targets: list[tuple[int, Kind]]) -> str:
    cases = "".join(_case(number, kind) for number, kind in targets)
    return _BODY.replace("OBEY", name).replace("CASES", cases)


class Targets:
    """The compiled programs and their maps."""

    def __init__(self) -> None:
        targets = _targets()
        head = _HEAD + "".join(_declare(n, kind, size) for n, (kind, size) in enumerate(targets))
        every = [(n, kind) for n, (kind, _) in enumerate(targets)]
        traced = [(n, kind) for n, kind in every if is_traceable(kind, kernel_version())]
        text = head + _function("obey", every) + _function("obey_traced", traced) + _PROGRAMS
        self.object = ProbeObject(text, {})
        with self._map("orders") as orders:
            self.orders = Orders(orders)

    def map(self, number: int) -> KernelMap:
        return self._map(f"target{number}")

    @staticmethod
    def number(kind: Kind, *, small: bool) -> int:
        size = SMALL_ENTRIES if small else ENTRIES
        return _targets().index((kind, size))

    def close(self) -> None:
        self.orders.close()
        self.object.close()

    def _map(self, name: str) -> KernelMap:
        fd = self.object.map_fd(name)
        return KernelMap(os.dup(fd), map_info(fd, name))
