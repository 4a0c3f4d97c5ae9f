"""Choosing how changes are seen: ``auto`` takes the first mode that the canary proves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from bridge.capture.attach import CACHE
from bridge.capture.canary import Coverage, prove
from bridge.capture.functions import PROBED_TYPES
from bridge.capture.loader import ProbeError
from bridge.capture.probes import ProbeCapture
from bridge.capture.source import Mode
from bridge.capture.tables import SLOTS_MAX
from bridge.capture.transport import PERF_PAGES, Transport
from bridge.errors import BridgeError
from bridge.kernel.maptypes import MapType

# Mode syscall is not among them: alone it is blind to what BPF programs write, and says nothing.
AUTO_ORDER = (Mode.FENTRY, Mode.KPROBE)


@dataclass(slots=True)
class Selection:
    """What runs now. In mode ``SWEEP`` there are no probes: maps are compared at intervals.

    ``rejected`` gives the reason for each mode that was tried and not taken, ``uncovered`` for
    each type of map whose changes the probes do not see here. Not thread-safe.
    """

    mode: Mode
    probes: ProbeCapture | None
    coverage: Coverage
    rejected: dict[str, str] = field(default_factory=dict)
    uncovered: dict[int, str] = field(default_factory=dict)
    _covered: set[int] = field(default_factory=set)

    def covers(self, map_type: int) -> bool:
        """Whether the probes were seen to report all writes of such maps; tried once for a type."""
        if self.probes is None or map_type in self.uncovered:
            return False
        if map_type not in self._covered:
            try:
                self.prove(map_type)
            except BridgeError as error:
                self.uncovered[map_type] = str(error)
                return False
        return True

    def prove(self, map_type: int) -> None:
        """See what the probes report of such maps. Raises ``ProbeError`` unless it is all."""
        if self.probes is None or map_type not in PROBED_TYPES:
            raise ProbeError(f"mode {self.mode}: no probe knows this type of map")
        found = prove(self.probes, MapType(map_type))
        self.coverage = self.coverage.joined(found)
        _check(found)
        self._covered.add(map_type)

    def close(self) -> None:
        if self.probes is not None:
            self.probes.close()


def select_mode(
    mode: Mode,
    *,
    slots: int = SLOTS_MAX,
    cache: Path = CACHE,
    transport: Transport = Transport.AUTO,
    perf_pages: int = PERF_PAGES,
) -> Selection:
    """Start the mode that was asked for, or for ``AUTO`` the best that works.

    Raises ``BridgeError`` when a mode that was asked for by name does not work; ``AUTO`` ends with
    ``SWEEP``, which always does. ``slots`` bounds how many maps can be watched at once, ``cache``
    is a folder for merged kernel headers. ``transport`` and ``perf_pages`` are for the records.
    """
    rejected: dict[str, str] = {}

    def start(candidate: Mode) -> Selection:
        probes = ProbeCapture.start(
            candidate, slots=slots, cache=cache, transport=transport, perf_pages=perf_pages
        )
        return _proven(probes)

    if mode not in (Mode.AUTO, Mode.SWEEP):
        return start(mode)
    if mode is Mode.AUTO:
        for candidate in AUTO_ORDER:
            try:
                return start(candidate)
            except BridgeError as error:
                rejected[str(candidate)] = f"{error}; {error.hint}" if error.hint else str(error)
    return Selection(Mode.SWEEP, None, Coverage(Mode.SWEEP, ()), rejected)


def _proven(probes: ProbeCapture) -> Selection:
    """What was started, if it sees what it should; otherwise it is closed."""
    mode = probes.mode
    try:
        selection = Selection(mode, probes, Coverage(mode, ()))
        selection.prove(MapType.HASH)
    except BaseException:
        probes.close()
        raise
    return selection


def _check(coverage: Coverage) -> None:
    if not coverage.proven:
        gaps = ", ".join(f"{f.writer} {f.operation}: {f.seen}" for f in coverage.gaps())
        raise ProbeError(
            f"mode {coverage.mode}: the probes do not report all writes (got {gaps})",
            hint="use mode sweep on this kernel, and report its version",
        )
