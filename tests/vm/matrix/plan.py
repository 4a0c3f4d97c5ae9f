"""What the kernel matrix tries: map types, writers, operations, and what no probe can see.

Everything here is data; a map type is one line of ``KINDS``. ``cells`` answers the whole table,
which ``suite.py`` fills in a guest and ``page.py`` writes down.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

from bridge.capture.source import Mode
from bridge.kernel.maptypes import LRU_TYPES, PER_CPU_TYPES, MapFlag, MapType

ENTRIES: Final = 8192  # of each map; the kernel keeps far fewer in an LRU map before it evicts
KEYS_MAX: Final = 2003  # that any step uses, from 0 on
SMALL_ENTRIES: Final = 512  # of the LRU maps that are overfilled
TRACEABLE_SINCE: Final = (6, 1)
MODES: Final = (Mode.FENTRY, Mode.KPROBE, Mode.SYSCALL, Mode.SWEEP)


@dataclass(frozen=True, slots=True)
class Kind:
    """A type of map in a form. ``bcc``: its name in BCC."""

    name: str
    type: MapType
    bcc: str
    flags: MapFlag = MapFlag.NONE

    @property
    def is_array(self) -> bool:
        return "array" in self.bcc

    @property
    def is_lru(self) -> bool:
        return self.bcc.startswith("lru")

    @property
    def is_per_cpu(self) -> bool:
        return self.type in PER_CPU_TYPES


KINDS: Final = (
    Kind("hash", MapType.HASH, "hash"),
    Kind("hash, not preallocated", MapType.HASH, "hash", MapFlag.NO_PREALLOC),
    Kind("lru_hash", MapType.LRU_HASH, "lru_hash"),
    Kind("percpu_hash", MapType.PERCPU_HASH, "percpu_hash"),
    Kind("lru_percpu_hash", MapType.LRU_PERCPU_HASH, "lru_percpu_hash"),
    Kind("array", MapType.ARRAY, "array"),
    Kind("percpu_array", MapType.PERCPU_ARRAY, "percpu_array"),
    Kind("lpm_trie", MapType.LPM_TRIE, "lpm_trie", MapFlag.NO_PREALLOC),
)
TIMED: Final = KINDS[0]  # the kind of the timer's own map


class Writer(enum.StrEnum):
    """Who writes."""

    SINGLE = "bpf(2)"
    BATCH = "bpf(2) batch"
    TC = "tc program"
    XDP = "XDP program"
    TRACEPOINT = "program on a tracepoint"
    SOFTIRQ = "XDP program in a softirq"
    TIMER = "bpf timer"


PROGRAMS: Final = frozenset(Writer) - {Writer.SINGLE, Writer.BATCH}


class Action(enum.StrEnum):
    """What is written."""

    INSERT = "update: new key"
    OVERWRITE = "update: overwrite"
    REFUSED = "update: refused"
    IN_PLACE = "store in place"
    DELETE = "delete"
    DELETE_NONE = "delete: no such key"
    TAKE = "lookup and delete"
    EVICT = "update: map is full"


@dataclass(frozen=True, slots=True)
class Step:
    """An action on the keys from ``first`` on."""

    action: Action
    first: int
    count: int

    @property
    def changes(self) -> int:
        """Changes that it makes; of ``EVICT``, not counting those that make room."""
        return 0 if self.action in (Action.REFUSED, Action.DELETE_NONE) else self.count


# One after the other on an empty map. Counts are prime.
_SINGLE = (
    Step(Action.INSERT, 0, 101),
    Step(Action.OVERWRITE, 0, 97),
    Step(Action.REFUSED, 0, 13),
    Step(Action.DELETE, 0, 31),
    Step(Action.DELETE_NONE, 0, 29),
    Step(Action.TAKE, 31, 37),
)
# More than one record of the system call's part holds.
_BATCH = (
    Step(Action.INSERT, 0, 2003),
    Step(Action.OVERWRITE, 0, 1997),
    Step(Action.DELETE, 0, 1031),
    Step(Action.TAKE, 1031, 972),  # 2003 - 1031: all that is left
)
_PROGRAM = (
    Step(Action.INSERT, 0, 211),
    Step(Action.OVERWRITE, 0, 199),
    Step(Action.REFUSED, 0, 17),
    Step(Action.IN_PLACE, 0, 59),
    Step(Action.DELETE, 0, 61),
    Step(Action.DELETE_NONE, 0, 53),
)
_OVERFILL = Step(Action.EVICT, 0, 2003)
_OVERFILLS: Final = frozenset((Writer.SINGLE, Writer.TC))
# What an array has none of: every slot is always there.
_ONLY_WITH_KEYS = frozenset(
    (Action.INSERT, Action.DELETE, Action.DELETE_NONE, Action.TAKE, Action.EVICT)
)


def steps(kind: Kind, writer: Writer) -> tuple[Step, ...]:
    """What a writer does to a map, in order."""
    if writer is Writer.TIMER and kind is not TIMED:
        return ()
    every = {Writer.SINGLE: _SINGLE, Writer.BATCH: _BATCH}.get(writer, _PROGRAM)
    if writer in _OVERFILLS and kind.is_lru:
        every = (*every, _OVERFILL)
    absent = _ONLY_WITH_KEYS if kind.is_array else frozenset()
    if kind.type is MapType.LPM_TRIE:
        absent = frozenset((Action.TAKE,))
    return tuple(step for step in every if step.action not in absent)


@dataclass(frozen=True, slots=True)
class Place:
    """One cell of the table, on any kernel."""

    mode: Mode
    kind: Kind
    writer: Writer
    step: Step


def places() -> Iterator[Place]:
    """The whole table."""
    for mode in MODES:
        for kind in KINDS:
            for writer in Writer:
                for step in steps(kind, writer):
                    yield Place(mode, kind, writer, step)


@dataclass(frozen=True, slots=True)
class Unseen:
    """Cells that a mode cannot see, and why; a sweep or a repair finds what they changed.

    An empty set stands for all; ``before``: only on kernels older than that.
    """

    modes: frozenset[Mode]
    reason: str
    writers: frozenset[Writer] = frozenset()
    actions: frozenset[Action] = frozenset()
    types: frozenset[MapType] = frozenset()
    before: tuple[int, int] | None = None

    def holds(self, place: Place, kernel: tuple[int, int]) -> bool:
        return (
            place.mode in self.modes
            and (not self.writers or place.writer in self.writers)
            and (not self.actions or place.step.action in self.actions)
            and (not self.types or place.kind.type in self.types)
            and (self.before is None or kernel < self.before)
        )


UNSEEN: Final = (
    Unseen(
        frozenset((Mode.FENTRY, Mode.KPROBE, Mode.SYSCALL)),
        "a store through a looked-up pointer passes no function of the kernel",
        actions=frozenset((Action.IN_PLACE,)),
    ),
    Unseen(
        frozenset((Mode.SYSCALL,)),
        "the system call's probes see system calls only",
        writers=PROGRAMS,
    ),
    Unseen(
        frozenset((Mode.KPROBE,)),
        "the kernel runs no program on a kprobe while one on a classic tracepoint runs there",
        writers=frozenset((Writer.TRACEPOINT,)),
        before=(7, 2),  # so it is on 6.12, and not on 7.2; those between were not tried
    ),
    Unseen(
        frozenset((Mode.KPROBE, Mode.SYSCALL)),
        "what the kernel evicts while it serves bpf(2) passes no probe that runs then; an eviction "
        "is no change for other nodes",
        writers=frozenset((Writer.SINGLE,)),
        actions=frozenset((Action.EVICT,)),
    ),
    Unseen(
        frozenset((Mode.SWEEP,)),
        "a key that an LRU map lacks may have been evicted, which is no delete; with "
        'evict = "replicate" it is one, and found',
        actions=frozenset((Action.DELETE, Action.TAKE, Action.EVICT)),
        types=LRU_TYPES,
    ),
)
UNTRACED: Final = "the kernel lets no probe into the file that holds the functions of LPM tries"
UNTRACED_SINCE: Final = (7, 2)  # not so on 6.12; those between were not tried


def is_traced(kind: Kind, kernel: tuple[int, int]) -> bool:
    """Whether probes can stand at the functions of such a map."""
    return kind.type is not MapType.LPM_TRIE or kernel < UNTRACED_SINCE


def unseen(place: Place, kernel: tuple[int, int]) -> str | None:
    """Why the cell cannot be seen on a kernel; ``None``: it must be."""
    return next((u.reason for u in UNSEEN if u.holds(place, kernel)), None)


def is_traceable(kind: Kind, kernel: tuple[int, int]) -> bool:
    """Whether a program on a tracepoint may use such a map.

    Before 6.1 memory for its entries could not be had everywhere, and the kernel warns.
    """
    return kernel >= TRACEABLE_SINCE or not kind.flags & MapFlag.NO_PREALLOC


def since(place: Place) -> tuple[int, int] | None:
    """The first kernel that can do it; ``None``: all that have capture at all."""
    is_tree = place.kind.type in (MapType.LPM_TRIE, MapType.PERCPU_ARRAY)
    if place.writer is Writer.TIMER:
        return 5, 15
    if place.writer is Writer.SINGLE and place.step.action is Action.TAKE:
        return 5, 14
    if place.writer is Writer.TRACEPOINT and not is_traceable(place.kind, (0, 0)):
        return TRACEABLE_SINCE
    if place.writer is Writer.BATCH and is_tree:
        return 5, 13
    return None


class State(enum.StrEnum):
    """What came of a cell."""

    COMPLETE = "complete"
    UNSEEN = "not visible in this mode"  # as expected, and found by a comparison
    UNSUPPORTED = "unsupported by the kernel"
    REFUSED = "refused"  # the mode does not take this type of map
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell on one kernel. ``repaired``: changes that a comparison with the fold then found."""

    mode: str
    kind: str
    writer: str
    operation: str
    expected: int
    seen: int
    state: State
    repaired: int | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """One kernel."""

    version: str
    release: str
    seconds: float
    cells: tuple[Cell, ...] = field(default_factory=tuple)

    @property
    def failures(self) -> tuple[Cell, ...]:
        return tuple(c for c in self.cells if c.state is State.FAILED)
