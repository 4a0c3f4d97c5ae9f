"""Capture by probes: attaches the programs of ``bpf/capture.bpf.c`` and gives a source per map.

Two parts report changes. *Functions*: fentry and fexit on the map type's own functions, which see
every writer, or kprobe and kretprobe, which see what BPF programs write. *System call*: entry and
exit of bpf(2), which see what user space writes. The kernel skips programs on kprobes while it
works on a map for bpf(2), so neither part sees the other's changes; beside fentry the system call's
part reports only what does not pass through those functions. ``bridge.capture.canary``
proves what the running kernel makes of it.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bridge.capture.attach import CACHE, CALL_PROGRAMS, FunctionProbes, Plan, attach, make_plan
from bridge.capture.functions import functions_of
from bridge.capture.loader import Attachment, ProbeError, ProbeObject, ProgramType
from bridge.capture.source import Losses, Mode
from bridge.capture.tables import (
    SLOTS_MAX,
    ProgramTables,
    Watch,
    check_watchable,
    layout_of,
    losses_since,
    open_table,
)
from bridge.capture.transport import (
    PERF_PAGES,
    PERF_PAGES_MIN,
    RING_BYTES_MIN,
    Carrier,
    RecordSource,
    Route,
    Transport,
    choose_carrier,
)
from bridge.kernel.cpus import cpu_numbers
from bridge.kernel.maps import KernelMap, MapType, type_name
from bridge.model import U64

MISSES_SECONDS = 1.0  # age at which the kernel's miss counts are read again
_CANARY_TRIES = 100
_CANARY_PAUSE_SECONDS = 0.002
_ONE = (1).to_bytes(4, "little")


@dataclass(slots=True)
class _Slot:
    """A watched map. ``base`` and ``missed`` are the counts at the time of the watch."""

    watch: Watch
    base: U64
    missed: int
    map_type: int


@dataclass(frozen=True, slots=True)
class CanaryMap:
    """A private map of one type: what the canary writes, and what is reported of it.

    ``update`` and ``delete`` are descriptors of the classifiers that write it.
    """

    map: KernelMap
    source: RecordSource
    update: int
    delete: int

    def close(self) -> None:
        self.source.close()
        self.map.close()


class ProbeCapture:
    """The attached programs and the maps that they watch.

    Made by ``start``; ``close`` detaches everything. All methods may be called from any thread.
    """

    def __init__(
        self, plan: Plan, programs: ProbeObject, slots: int, carrier: Carrier, perf_pages: int
    ) -> None:
        self.mode = plan.mode
        self._carrier = carrier
        self._perf_pages = perf_pages
        self._programs = programs
        self._functions = FunctionProbes(programs, plan)
        self._tables = ProgramTables(programs, slots)
        self._free = deque(range(slots))
        self._slots: dict[int, _Slot] = {}
        self._lock = threading.RLock()
        self._missed: dict[int, int] = {}  # by number of the function
        self._missed_calls = 0
        self._missed_read_at = 0.0
        self._is_open = True
        self.canary_lock = threading.Lock()
        self._functions.cover(MapType.HASH)
        self._canary = self._make_canary(MapType.HASH)

    @classmethod
    def start(
        cls,
        mode: Mode,
        *,
        slots: int = SLOTS_MAX,
        cache: Path = CACHE,
        transport: Transport = Transport.AUTO,
        perf_pages: int = PERF_PAGES,
    ) -> ProbeCapture:
        """Compile, load and attach for a mode with probes; one slot is the canary's.

        ``cache`` is a folder for merged kernel headers; ``perf_pages`` the size of the buffer of
        each map and CPU where perf buffers are used.

        Raises ``ProbeError`` or another ``BridgeError``; then nothing is left attached.
        """
        carrier = choose_carrier(transport, cpu_numbers())
        plan = make_plan(mode)
        programs = attach(plan, slots, cache, carrier.defines())
        try:
            return cls(plan, programs, slots, carrier, perf_pages)
        except BaseException:
            programs.close()
            raise

    @property
    def transport(self) -> Transport:
        """What carries the records: ``RING`` or ``PERF``."""
        return self._carrier.transport

    def cover(self, map_type: int) -> None:
        """Attach what maps of a type need beyond the system call; done once for each type.

        Raises ``ProbeError`` where the kernel lacks a function, or the probes do not know the type.
        """
        with self._lock:
            self._functions.cover(map_type)

    @contextmanager
    def canary(self, map_type: MapType) -> Iterator[CanaryMap]:
        """The private map of a type that the canary writes; one thread at a time."""
        with self.canary_lock:
            if map_type is MapType.HASH:
                yield self._canary  # kept, because threads are learnt with it
                return
            made = self._make_canary(map_type)
            try:
                yield made
            finally:
                made.close()

    def _make_canary(self, map_type: MapType) -> CanaryMap:
        update, delete = (
            self._programs.load(name, ProgramType.SCHED_CLS)
            for name in ("update_canaries", "delete_canaries")
        )
        target = open_table(self._programs, f"canary_{type_name(map_type)}")
        try:
            source = self.watch(target, RING_BYTES_MIN, perf_pages=PERF_PAGES_MIN)
            return CanaryMap(target, source, update, delete)
        except BaseException:
            target.close()
            raise

    def watch(
        self, target: KernelMap, ring_bytes: int, *, perf_pages: int | None = None
    ) -> RecordSource:
        """Report the changes of a map from now on, through a ring of at least ``ring_bytes``.

        Where perf buffers are used, each CPU's has ``perf_pages``, or those given at the start.
        The map must stay open as long as the source, which closing ends the watch. ``cover`` its
        type first. Raises ``UnwatchableError`` for kinds of maps that cannot be covered,
        ``ProbeError`` when the map is watched already or no slot is free.
        """
        info = target.info
        check_watchable(info)
        with self._lock:
            if info.id in self._slots:
                raise ProbeError(f"map {info.name} (id {info.id}): watched already")
            if not self._free:
                raise ProbeError(
                    f"map {info.name} (id {info.id}): no slot free (got {len(self._slots)} maps)",
                    hint="watch fewer maps",
                )
            slot = _Slot(
                Watch(self._free[0], layout_of(info)),
                self._tables.losses.read(self._free[0]),
                self._count_missed(info.type, fresh=True),
                info.type,
            )
            number = slot.watch.slot.to_bytes(4, "little")
            route = Route(
                self._tables.rings,
                number,
                target,
                slot.watch.layout,
                ring_bytes,
                perf_pages or self._perf_pages,
                losses=lambda: self.losses(info.id),
                on_close=lambda: self.unwatch(info.id),
            )
            source = self._carrier.open(route)
            self._free.popleft()
            self._slots[info.id] = slot
            try:
                self._tables.sieve.add(info.id, 1)
                self._tables.watched.update(info.id.to_bytes(4, "little"), slot.watch.pack())
            except BaseException:
                source.close()
                raise
            return source

    def unwatch(self, map_id: int) -> None:
        """Report the map's changes no longer. A map that is not watched is left alone."""
        with self._lock:
            slot = self._slots.pop(map_id, None)
            if slot is None or not self._is_open:
                return
            self._tables.watched.delete(map_id.to_bytes(4, "little"))
            self._tables.sieve.add(map_id, -1)
            self._tables.rings.delete(slot.watch.slot.to_bytes(4, "little"))
            # To the far end: a program that is just running may still have the old number.
            self._free.append(slot.watch.slot)

    def losses(self, map_id: int) -> Losses:
        """What was lost of a map since its watch began; nothing for a map that is not watched.

        Losses that cannot be laid at one map's door count for each: a failed read of an unknown
        map's id, and operations that the kernel kept from the probes.
        """
        with self._lock:
            slot = self._slots.get(map_id)
            if slot is None or not self._is_open:
                return Losses()
            now = self._tables.losses.read(slot.watch.slot)
            return losses_since(slot.base, now, self._count_missed(slot.map_type) - slot.missed)

    def blind(self) -> int | None:
        """Operations on any map of the covered types that the kernel kept the probes from.

        They are part of ``losses``. ``None`` where the kernel does not let them be counted.
        """
        with self._lock:
            return self._functions.blind()

    def nested(self) -> int | None:
        """Calls that a second copy of the fexit programs took over; ``None`` where there is none.

        They are not losses.
        """
        with self._lock:
            return self._functions.nested()

    def attachments(self) -> tuple[Attachment, ...]:
        """Where programs are attached, with the kernel's counts."""
        return self._programs.attachments()

    def own_thread(self) -> int:
        """Keep this thread's writes by bpf(2) from being reported. Answers its id in the kernel.

        The id is learnt from the record of a write, because in a pid namespace no system call
        tells it. Call it from the thread itself, and ``forget_thread`` before the thread ends.
        """
        key = os.urandom(4)
        with self.canary_lock:
            self._canary.source.drain()
            self._canary.map.update(key, bytes(8))
            thread = self._writer_of(key)
            self._tables.own_threads.update(thread.to_bytes(4, "little"), _ONE)
            self._canary.map.delete(key)
        return thread

    def forget_thread(self, thread: int) -> None:
        """Report the writes of this thread id again."""
        self._tables.own_threads.delete(thread.to_bytes(4, "little"))

    def close(self) -> None:
        """Detach all programs. Sources stay readable until they are closed themselves."""
        with self._lock:
            if not self._is_open:
                return
            self._is_open = False
            self._programs.close()
            self._functions.close()
            self._canary.close()
            self._tables.close()

    def _writer_of(self, key: bytes) -> int:
        for _ in range(_CANARY_TRIES):
            for batch in self._canary.source.drain():
                for row in range(len(batch)):
                    if batch.keys[row].tobytes() == key:
                        return int(batch.writers[row])
            time.sleep(_CANARY_PAUSE_SECONDS)
        raise ProbeError(
            "own thread: its write was not reported, so its id is not known",
            hint="see which writers the probes cover with `mapbridge doctor`",
        )

    def _count_missed(self, map_type: int, *, fresh: bool = False) -> int:
        """Operations on maps of a type that the probes could not see: another probe ran on that
        CPU, or bpf(2) did.

        Programs on bpf(2) itself are skipped when their task has preempted another one in the
        midst of its bpf(2) call; these misses can be of any map. Operations on maps that nobody
        watches count too, which costs a repair at worst.
        """
        if fresh or time.monotonic() - self._missed_read_at > MISSES_SECONDS:
            calls: dict[str, int] = {}
            for one in self._programs.attachments():
                if one.function in CALL_PROGRAMS:
                    calls[one.target] = max(calls.get(one.target, 0), one.misses or 0)
                    calls[one.function] = one.skipped
            self._missed_calls = sum(calls.values())
            self._missed = self._functions.missed()
            self._missed_read_at = time.monotonic()
        by_programs = self.mode is Mode.KPROBE
        return self._missed_calls + sum(
            self._missed.get(one.number, 0)
            for one in functions_of(map_type, by_programs=by_programs)
        )
