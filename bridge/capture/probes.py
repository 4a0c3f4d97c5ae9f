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
from dataclasses import dataclass
from pathlib import Path

from bridge.capture.attach import (
    CACHE,
    CALL_PROGRAMS,
    attach,
    attach_blindness,
    make_plan,
    open_nesting,
    possible_cpus,
)
from bridge.capture.loader import Attachment, ProbeError, ProbeObject, ProgramType
from bridge.capture.source import Losses, Mode
from bridge.capture.tables import SLOTS_MAX, LossTable, Watch, check_watchable, losses_since
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
from bridge.kernel.maps import KernelMap, map_info
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


class _Tables:
    """The programs' maps, opened."""

    def __init__(self, programs: ProbeObject, slots: int) -> None:
        self.watched = _open(programs, "watched")
        self.rings = _open(programs, "rings")
        self.own_threads = _open(programs, "own_threads")
        self.canary = _open(programs, "canary")
        self.losses = LossTable(programs.map_fd("losses"), slots)

    def close(self) -> None:
        for table in (self.watched, self.rings, self.own_threads, self.canary):
            table.close()
        self.losses.close()


class ProbeCapture:
    """The attached programs and the maps that they watch.

    Made by ``start``; ``close`` detaches everything. All methods may be called from any thread.
    """

    def __init__(
        self, mode: Mode, programs: ProbeObject, slots: int, carrier: Carrier, perf_pages: int
    ) -> None:
        self.mode = mode
        self._carrier = carrier
        self._perf_pages = perf_pages
        self._programs = programs
        self._tables = _Tables(programs, slots)
        self._free = deque(range(slots))
        self._slots: dict[int, _Slot] = {}
        self._lock = threading.RLock()
        self._missed = 0
        self._missed_read_at = 0.0
        self._is_open = True
        self._blindness = attach_blindness(programs)
        self._nesting = open_nesting(programs)
        self.canary_lock = threading.Lock()
        self.canary_source = self.watch(
            self._tables.canary, RING_BYTES_MIN, perf_pages=PERF_PAGES_MIN
        )

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
        carrier = choose_carrier(transport, possible_cpus())
        programs = attach(make_plan(mode), slots, cache, carrier.defines())
        try:
            return cls(mode, programs, slots, carrier, perf_pages)
        except BaseException:
            programs.close()
            raise

    @property
    def transport(self) -> Transport:
        """What carries the records: ``RING`` or ``PERF``."""
        return self._carrier.transport

    @property
    def canary(self) -> KernelMap:
        """The private map that the canary writes; its changes come out of ``canary_source``."""
        return self._tables.canary

    def canary_program(self, function: str) -> int:
        """The descriptor of one of the classifiers that write the canary."""
        return self._programs.load(function, ProgramType.SCHED_CLS)

    def watch(
        self, target: KernelMap, ring_bytes: int, *, perf_pages: int | None = None
    ) -> RecordSource:
        """Report the changes of a map from now on, through a ring of at least ``ring_bytes``.

        Where perf buffers are used, each CPU's has ``perf_pages``, or those given at the start.
        The map must stay open as long as the source, which closing ends the watch. Raises
        ``UnwatchableError`` for kinds of maps that are not covered, ``ProbeError`` when the map is
        watched already or no slot is free.
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
                Watch(self._free[0], info.key_size, info.value_size),
                self._tables.losses.read(self._free[0]),
                self._count_missed(fresh=True),
            )
            number = slot.watch.slot.to_bytes(4, "little")
            route = Route(
                self._tables.rings,
                number,
                target,
                ring_bytes,
                perf_pages or self._perf_pages,
                losses=lambda: self.losses(info.id),
                on_close=lambda: self.unwatch(info.id),
            )
            source = self._carrier.open(route)
            self._free.popleft()
            self._slots[info.id] = slot
            try:
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
            return losses_since(slot.base, now, self._count_missed() - slot.missed)

    def blind(self) -> int | None:
        """Operations on any plain hash map that the kernel kept the function probes from.

        They are part of ``losses``. ``None`` where the kernel does not let them be counted.
        """
        with self._lock:
            return self._blindness.read() if self._blindness is not None else None

    def nested(self) -> int | None:
        """Calls that a second copy of the fexit programs took over; ``None`` where there is none.

        They are not losses.
        """
        with self._lock:
            return self._nesting.steps() if self._nesting is not None else None

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
            self.canary_source.drain()
            self.canary.update(key, bytes(8))
            thread = self._writer_of(key)
            self._tables.own_threads.update(thread.to_bytes(4, "little"), _ONE)
            self.canary.delete(key)
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
            for part in (self._blindness, self._nesting):
                if part is not None:
                    part.close()
            self.canary_source.close()
            self._tables.close()

    def _writer_of(self, key: bytes) -> int:
        for _ in range(_CANARY_TRIES):
            for batch in self.canary_source.drain():
                for row in range(len(batch)):
                    if batch.keys[row].tobytes() == key:
                        return int(batch.writers[row])
            time.sleep(_CANARY_PAUSE_SECONDS)
        raise ProbeError(
            "own thread: its write was not reported, so its id is not known",
            hint="see which writers the probes cover with `mapbridge doctor`",
        )

    def _count_missed(self, *, fresh: bool = False) -> int:
        """Operations that the probes could not see: another probe ran on that CPU, or bpf(2) did.

        The kernel counts misses per probe; of a function's two probes the one that missed more
        tells. Programs on bpf(2) itself are skipped when their task has preempted another one in
        the midst of its bpf(2) call. Operations on maps that nobody watches count too, which costs
        a repair at worst.
        """
        if fresh or time.monotonic() - self._missed_read_at > MISSES_SECONDS:
            by_target: dict[str, int] = {}
            for one in self._programs.attachments():
                by_target[one.target] = max(by_target.get(one.target, 0), one.misses or 0)
                if one.function in CALL_PROGRAMS:
                    by_target[one.function] = one.skipped
            self._missed = sum(by_target.values())
            if self._nesting is not None:
                self._missed += self._nesting.missed()
            self._missed_read_at = time.monotonic()
        return self._missed + (self.blind() or 0)


def _open(programs: ProbeObject, name: str) -> KernelMap:
    fd = programs.map_fd(name)
    return KernelMap(os.dup(fd), map_info(fd, f"map {name}"))
