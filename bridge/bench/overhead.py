"""What capture costs the writer: one operation with no probes, unwatched, and watched.

All variants of a mode are measured in turns, several rounds, and the medians compared: on a machine
that does other things too, times move, and ratios of one run hold. Programs are timed by the
kernel's own test runs; system calls by this process, whose interpreter is part of each figure.
"""

from __future__ import annotations

import ctypes
import os
import statistics
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from bridge.capture.attach import CACHE
from bridge.capture.emit import EmitSource
from bridge.capture.probes import ProbeCapture
from bridge.capture.source import ChangeSource, Mode
from bridge.errors import BridgeError
from bridge.kernel import syscall
from bridge.kernel.elements import address_of
from bridge.kernel.maps import KernelMap
from bridge.kernel.objects import LoadedObject, compile_object, default_cache, load_object
from bridge.kernel.programs import FRAME_BYTES_MIN
from bridge.kernel.syscall import Command
from bridge.model import MapSelector
from bridge.resources import bpf_directory, bpf_source
from bridge.rig.claim import Claim, reap_leftovers

SIZES = ((8, 8), (16, 24), (40, 120))  # of keys and values, in bytes
MAP, RING, LOSSES, PROGRAM = "cost", "cost_ring", "cost_lost", "cost_run"
RING_BYTES = 64 << 20
KEYS = 1024  # COST_KEYS
SAMPLES = 3  # of each variant in a round
PROBED = (Mode.FENTRY, Mode.KPROBE, Mode.SYSCALL)
EMIT = "emit"
_IDLE_SECONDS = 0.001
_ELEMENT = struct.Struct("=I4xQQQ")  # of union bpf_attr: map_fd, key, value, flags


@dataclass(frozen=True, slots=True)
class Cost:
    """One row: nanoseconds of one operation.

    ``unwatched``: probes are attached for other maps; ``None`` where there is no such thing.
    ``watched``: with a reader that drains the ring. ``lost``: changes that found it full.
    """

    mode: str
    writer: str
    key_bytes: int
    value_bytes: int
    bare: float
    unwatched: float | None
    watched: float
    lost: int


@dataclass(slots=True)
class _Row:
    """The samples of a row, by variant."""

    bare: list[float] = field(default_factory=list)
    unwatched: list[float] = field(default_factory=list)
    watched: list[float] = field(default_factory=list)
    lost: int = 0


@dataclass(frozen=True, slots=True)
class Overheads:
    """The answer; ``unavailable``: by mode, why it was not measured."""

    costs: tuple[Cost, ...]
    unavailable: dict[str, str]


class Subject:
    """The map of one pair of sizes, and those who write it. Without probes nothing sees them."""

    def __init__(self, loaded: LoadedObject, repeat: int) -> None:
        self.map: KernelMap = loaded.map(MAP)
        self._program = loaded.program(PROGRAM)
        self._repeat = repeat
        info = self.map.info
        self.sizes = info.key_size, info.value_size
        self._keys = np.zeros((KEYS, info.key_size), np.uint8)
        self._keys[:, :8] = np.arange(KEYS, dtype=np.uint64).view(np.uint8).reshape(KEYS, 8)
        self._values = np.zeros((KEYS, info.value_size), np.uint8)

    def writers(self) -> dict[str, Callable[[], float]]:
        """By name, what answers the nanoseconds of one operation."""
        return {"program": self.program, "call": self.call, "batch": self.batch}

    def program(self) -> float:
        """An update by a program."""
        return float(
            self._program.test_run(bytes(FRAME_BYTES_MIN), repeat=self._repeat).duration_ns
        )

    def call(self) -> float:
        """An update by one system call."""
        count = self._repeat // 8
        fields = self.map.fileno(), address_of(self._keys), address_of(self._values), 0
        attr = ctypes.create_string_buffer(_ELEMENT.pack(*fields), _ELEMENT.size)
        began = time.perf_counter_ns()
        for _ in range(count):
            syscall.invoke(Command.MAP_UPDATE_ELEM, attr)
        return (time.perf_counter_ns() - began) / count

    def batch(self) -> float:
        """An update in a batch of 1,024."""
        calls = max(1, self._repeat // KEYS)
        began = time.perf_counter_ns()
        for _ in range(calls):
            self.map.update_batch(self._keys, self._values)
        return (time.perf_counter_ns() - began) / calls / KEYS


class Overhead:
    """Runs the measurement. Needs root; leaves nothing behind."""

    def __init__(
        self,
        report: Callable[[str], None],
        *,
        rounds: int,
        repeat: int,
        modes: Sequence[Mode] = PROBED,
        cache: Path = CACHE,
    ) -> None:
        self._report = report
        self._rounds = rounds
        self._repeat = repeat
        self._modes = list(modes)
        self._cache = cache
        self._rows: dict[tuple[str, str, int, int], _Row] = {}
        self._unavailable: dict[str, str] = {}
        cpus = sorted(os.sched_getaffinity(0))
        self._cpu, self._readers_cpus = cpus[:1], cpus[1:] or cpus

    def run(self) -> Overheads:
        reap_leftovers()
        with ExitStack() as stack:
            stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
            os.sched_setaffinity(0, self._cpu)
            claim = stack.enter_context(Claim.take())
            claim.pin_directory.mkdir(parents=True)
            plain = [self._load(stack, claim, sizes, []) for sizes in SIZES]
            emitting = [self._load(stack, claim, sizes, ["EMIT"]) for sizes in SIZES]
            subjects = [Subject(loaded, self._repeat) for loaded in plain]
            for number in range(self._rounds):
                self._report(f"round {number + 1} of {self._rounds}")
                for mode in list(self._modes):
                    self._probed(mode, subjects)
                for subject, loaded in zip(subjects, emitting, strict=True):
                    self._emitted(subject, loaded)
        return Overheads(tuple(self._costs()), self._unavailable)

    def _load(
        self, stack: ExitStack, claim: Claim, sizes: tuple[int, int], defines: Sequence[str]
    ) -> LoadedObject:
        key, value = sizes
        compiled = compile_object(
            bpf_source("examples/cost.bpf.c"),
            include=[bpf_directory()],
            defines=[f"KEY_WORDS={key // 8}", f"VALUE_WORDS={value // 8}", *defines],
            cache=default_cache(),
        )
        name = "_".join([str(key), str(value), *defines])
        return stack.enter_context(load_object(compiled, claim.pin_directory / name))

    def _probed(self, mode: Mode, subjects: Sequence[Subject]) -> None:
        bare = [(s, name, measure()) for s in subjects for name, measure in _each(s)]
        try:
            capture = ProbeCapture.start(mode, slots=len(SIZES) + 1, cache=self._cache)
        except BridgeError as error:
            self._unavailable[str(mode)] = str(error)
            self._modes.remove(mode)
            return
        try:
            for subject, name, nanoseconds in bare:
                self._row(mode, name, subject).bare.append(nanoseconds)
            for subject in subjects:
                for name, measure in _each(subject):
                    self._row(mode, name, subject).unwatched.append(measure())
            for subject in subjects:
                source = capture.watch(subject.map, RING_BYTES)
                for name, measure in _each(subject):
                    self._watched(self._row(mode, name, subject), source, measure)
                source.close()
        finally:
            capture.close()

    def _emitted(self, subject: Subject, loaded: LoadedObject) -> None:
        other = Subject(loaded, self._repeat)
        row = self._row(EMIT, "program", subject)
        ring, losses = (MapSelector(pin=str(loaded.map_pin(name))) for name in (RING, LOSSES))
        source = EmitSource(other.map, ring, losses)
        for _ in range(SAMPLES):
            row.bare.append(subject.program())
            self._watched(row, source, other.program)
        source.close()

    def _watched(self, row: _Row, source: ChangeSource, measure: Callable[[], float]) -> None:
        before = source.losses().ring_full
        with _drained(source, self._readers_cpus):
            row.watched.append(measure())
        row.lost += source.losses().ring_full - before

    def _row(self, mode: str, writer: str, subject: Subject) -> _Row:
        return self._rows.setdefault((str(mode), writer, *subject.sizes), _Row())

    def _costs(self) -> Iterator[Cost]:
        for (mode, writer, key, value), row in sorted(self._rows.items()):
            bare, unwatched, watched = (
                round(statistics.median(samples), 1) if samples else None
                for samples in (row.bare, row.unwatched, row.watched)
            )
            assert bare is not None, "a row begins with its base"
            assert watched is not None, "a row that was begun is measured to its end"
            yield Cost(mode, writer, key, value, bare, unwatched, watched, row.lost)


def _each(subject: Subject) -> Iterator[tuple[str, Callable[[], float]]]:
    """Each writer several times, in turns."""
    for _ in range(SAMPLES):
        yield from subject.writers().items()


@contextmanager
def _drained(source: ChangeSource, cpus: Sequence[int]) -> Iterator[None]:
    """A reader beside the writer, on another processor where there is one."""
    stop = threading.Event()

    def read() -> None:
        os.sched_setaffinity(0, cpus)
        while not stop.is_set():
            if not source.drain():
                stop.wait(_IDLE_SECONDS)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        while source.drain():
            pass
