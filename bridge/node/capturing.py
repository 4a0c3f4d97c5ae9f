"""Which source sees the changes of a map, and which thread drains it.

Rings are drained by one thread, sweeps by another, so that a long sweep never keeps a ring waiting.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bridge.capture.drain import DrainThread
from bridge.capture.emit import EmitSource
from bridge.capture.modes import Selection, select_mode
from bridge.capture.scan import ScannedSource, Share, SweepSource
from bridge.capture.source import ChangeSource, Losses, Mode
from bridge.capture.transport import Transport
from bridge.config.settings import CaptureMode, Config, MapConfig
from bridge.core.touches import GRACE_NANOSECONDS
from bridge.errors import InvariantError
from bridge.kernel.errors import MapClosedError
from bridge.kernel.maps import KernelMap, type_name
from bridge.kernel.maptypes import IN_PLACE_TYPES
from bridge.model import MapInfo
from bridge.node.lane import Lane

STOP_SECONDS_MAX = 10.0
REMOVE_SECONDS_MAX = 5.0


@dataclass(frozen=True, slots=True)
class Sweeps:
    """``finished`` so far, seconds of the last one, and what all of them found."""

    finished: int = 0
    seconds: float = 0.0
    found: int = 0


@dataclass(frozen=True, slots=True)
class Repairs:
    """``finished`` so far; ``going_on``: one was asked for; of the last one, time and leftovers."""

    finished: int = 0
    going_on: bool = False
    seconds: float = 0.0
    deferred: int = 0


def sweep_beside(entry: MapConfig, info: MapInfo) -> float | None:
    """At which interval a map that has a ring is compared too; ``None``: not at all.

    Programs write arrays through the pointer that a lookup gives them, as a rule.
    """
    asked = entry.sweeps_too or info.type in IN_PLACE_TYPES
    return entry.sweep_seconds if asked else None


class Capturing:
    """The capture side of a node. Methods may block: call them off the event loop."""

    def __init__(self, config: Config, report: Callable[[str, Exception], None]) -> None:
        self._config = config
        self._report = report
        self._selection: Selection | None = None
        self._rings = DrainThread(self._failed, name="rings")
        self._sweeps = DrainThread(self._failed, name="sweeps")
        self._sources: dict[str, tuple[ChangeSource, Lane]] = {}
        self._own_thread: int | None = None
        self._lock = threading.Lock()
        # One of start, add, remove and close at a time: a signal may come while one is at work.
        self._changing = threading.Lock()
        self._closed = False

    @property
    def mode(self) -> str:
        """The mode in force; ``none`` where no map of this node needs one."""
        return str(self._selection.mode) if self._selection is not None else "none"

    def summary(self) -> dict[str, str]:
        """The mode, and why it is none of the better ones."""
        rejected = self._selection.rejected if self._selection is not None else {}
        return {"mode": self.mode} | {f"not_{mode}": reason for mode, reason in rejected.items()}

    @property
    def transport(self) -> str:
        """What carries records; empty without probes."""
        probes = self._selection.probes if self._selection is not None else None
        return "" if probes is None else str(probes.transport)

    def attach(self) -> None:
        """Attach the probes, if a map needs them, and prove what they see."""
        with self._changing:
            if any(entry.role.publishes and entry.emit is None for entry in self._config.maps):
                capture = self._config.capture
                self._selection = select_mode(
                    Mode(str(capture.mode)),
                    transport=Transport(str(capture.transport)),
                    perf_pages=capture.perf_pages,
                )

    def start(self) -> None:
        """Start the threads that read changes; ``attach`` comes first."""
        with self._changing:
            if not self._closed:
                self._rings.start()
                self._sweeps.start()

    def without_probes(self, maps: Sequence[MapConfig]) -> list[str]:
        """Of maps that came with a reload, those that probes would see, had any been attached."""
        if self._selection is not None or self._config.capture.mode is CaptureMode.SWEEP:
            return []
        return [one.name for one in maps if one.role.publishes and one.emit is None]

    def own_thread(self) -> None:
        """Keep what the calling thread writes to maps from being captured."""
        if self._selection is not None and self._selection.probes is not None:
            self._own_thread = self._selection.probes.own_thread()

    def sweeps(self, entry: MapConfig, info: MapInfo) -> bool:
        """Whether this map's changes are seen by comparing its contents."""
        if entry.emit is not None or not entry.role.publishes:
            return False
        return self._selection is None or not self._selection.covers(info.type)

    def add(
        self, entry: MapConfig, target: KernelMap, lane: Lane, ready: Callable[[], bool]
    ) -> None:
        """Capture a map into its lane. ``ready``: the stream has been read to its end."""
        with self._changing:
            if not self._closed:
                self._add(entry, target, lane, ready)

    def _add(
        self, entry: MapConfig, target: KernelMap, lane: Lane, ready: Callable[[], bool]
    ) -> None:
        if self.sweeps(entry, target.info):
            sweep = SweepSource(target, lane, interval_seconds=entry.sweep_seconds, ready=ready)
            self._register(entry.name, sweep, lane)
            self._sweeps.add(sweep, lane.sink)
            return
        settle_seconds = 0.0
        if entry.emit is None:
            # A program that emits reports what it began before, too.
            lane.attached()
            settle_seconds = GRACE_NANOSECONDS / 1e9
        source = ScannedSource(
            self._ring_of(entry, target),
            target,
            ready=ready,
            comparison=lane,
            sweep_seconds=sweep_beside(entry, target.info),
            settle_seconds=settle_seconds,
        )
        self._register(entry.name, source, lane)
        self._rings.add(source, lane.sink)

    def _ring_of(self, entry: MapConfig, target: KernelMap) -> ChangeSource:
        if entry.emit is not None:
            return EmitSource(target, entry.emit, entry.emit_losses)
        assert self._selection is not None, "start comes first"
        assert self._selection.probes is not None, "a sweep has no ring"
        return self._selection.probes.watch(target, entry.ring_bytes)

    def remove(self, name: str) -> bool:
        """Take what a map's source still has, then forget it; whether all of it was taken.

        A program that goes on writing never lets its ring run empty, so there is a time limit.
        """
        with self._changing:
            return self._remove(name)

    def _remove(self, name: str) -> bool:
        with self._lock:
            source, lane = self._sources.pop(name, (None, None))
        if source is None or lane is None:
            return True
        is_sweep = isinstance(source, SweepSource)
        thread = self._sweeps if is_sweep else self._rings
        clean = thread.remove(source, drain=True)
        deadline = time.monotonic() + REMOVE_SECONDS_MAX
        while clean and not is_sweep and (batches := source.drain()):
            clean = all(lane.sink(batch) for batch in batches) and time.monotonic() < deadline
        source.close()
        return clean

    def is_swept(self, name: str) -> bool:
        """Whether the thread that sweeps reads a map; else the one that drains rings may."""
        with self._lock:
            source, _ = self._sources.get(name, (None, None))
        return isinstance(source, SweepSource)

    @contextmanager
    def unchanged(self) -> Iterator[None]:
        """While this lasts no map is added or removed."""
        with self._changing:
            yield

    @contextmanager
    def standing_still(self, *, swept: bool) -> Iterator[None]:
        """While this lasts one of the threads reads no map. May wait for the end of its turn."""
        with (self._sweeps if swept else self._rings).standing_still():
            yield

    def losses(self, name: str) -> Losses:
        """What was lost of a map since its capture began."""
        with self._lock:
            source, _ = self._sources.get(name, (None, None))
        return source.losses() if source is not None else Losses()

    def settled(self, name: str) -> bool:
        """Whether nothing that is older than a map's capture can still be going on."""
        with self._lock:
            source, _ = self._sources.get(name, (None, None))
        return not isinstance(source, ScannedSource) or source.settled

    def repair(self, name: str) -> None:
        """Something of a map was lost: have it compared with the stream. A sweep does so anyway."""
        with self._lock:
            source, _ = self._sources.get(name, (None, None))
        if isinstance(source, ScannedSource):
            source.repair()

    def scanned(self, name: str) -> bool:
        """Whether what a map held at the start has been compared with the stream."""
        with self._lock:
            source, _ = self._sources.get(name, (None, None))
        if isinstance(source, SweepSource):
            return source.sweeps > 0
        return isinstance(source, ScannedSource) and source.started

    def share_sweep(self, name: str, take: Share) -> bool:
        """Give what the next sweep of a map reads to ``take``; ``False``: it is not swept."""
        with self._lock:
            source, _ = self._sources.get(name, (None, None))
        if not isinstance(source, SweepSource):
            return False
        source.share(take)
        return True

    def repairs(self, name: str) -> Repairs:
        """What was done about losses of a map."""
        with self._lock:
            source, _ = self._sources.get(name, (None, None))
        if not isinstance(source, ScannedSource):
            return Repairs()
        return Repairs(source.repairs, source.repairing, source.repair_seconds, source.deferred)

    def swept(self, name: str) -> Sweeps:
        """The comparisons of a map at its interval."""
        with self._lock:
            source, _ = self._sources.get(name, (None, None))
        if not isinstance(source, ScannedSource | SweepSource):
            return Sweeps()
        return Sweeps(source.sweeps, source.sweep_seconds, source.found)

    def status(self) -> dict[str, object]:
        """What ``status.json`` says of the capture side."""
        answer: dict[str, object] = {"mode": self.mode}
        if self._selection is not None:
            answer["rejected"] = self._selection.rejected
            answer["coverage"] = self._selection.coverage.as_dict()
            answer["uncovered"] = {
                type_name(number): reason for number, reason in self._selection.uncovered.items()
            }
            if self.transport:
                answer["transport"] = self.transport
        return answer

    def check(self) -> None:
        """Raise when a thread of the capture side has ended by itself."""
        for thread in (self._rings, self._sweeps):
            if not thread.is_alive():
                raise InvariantError("capture: a thread that reads changes has ended")

    def close(self) -> None:
        """Stop both threads and detach the probes; waits for a start that is under way."""
        with self._changing:
            self._closed = True
            self._close()

    def _close(self) -> None:
        for thread in (self._rings, self._sweeps):
            thread.stop(drain=False, deadline_seconds=STOP_SECONDS_MAX)
        if self._selection is not None and self._selection.probes is not None:
            self._selection.probes.close()

    def _register(self, name: str, source: ChangeSource, lane: Lane) -> None:
        with self._lock:
            self._sources[name] = (source, lane)

    def _failed(self, source: ChangeSource, error: Exception) -> None:
        if isinstance(error, MapClosedError):
            return  # the map has gone, and its worker is about to leave
        with self._lock:
            name = next((n for n, (s, _) in self._sources.items() if s is source), "")
        self._report(name, error)
