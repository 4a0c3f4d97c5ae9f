"""TCP connections per second through the example connection tracker, with and without a bridge.

One process on one processor opens connections as fast as it can; a whole bridge that publishes the
tracker's map, and its server, have the other processors. Bare, unwatched and watched take turns.
A connection is three updates of the map and, since it ends by a reset, one delete.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bridge.capture.source import Mode
from bridge.demo.topology import Topology
from bridge.demo.tracker import Tracker
from bridge.errors import BridgeError
from bridge.kernel.maps import MapType, create_map
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim, reap_leftovers
from bridge.rig.nodes import MapEntry, NodeProcess

ENTRIES = 50_000
RING_BYTES = 16 << 20  # the bridge's default
EMIT = "emit"
MODES = (str(Mode.FENTRY), str(Mode.KPROBE), EMIT, str(Mode.SWEEP))
PROBED = {str(Mode.FENTRY), str(Mode.KPROBE)}
LATE_SECONDS = 60.0
STATUS_SECONDS_MAX = 10.0
OTHER = "other"  # the map that is watched while the tracker's is not


class ConnectorError(BridgeError):
    """The process that opens connections failed."""


@dataclass(frozen=True, slots=True)
class ConnectionCost:
    """One row: nanoseconds of processor time of one connection, and connections per second.

    ``unwatched``: the bridge has its probes attached for another map; ``None`` where it has none.
    ``dropped``: changes that the bridge knows to have lost while the map was watched.
    """

    mode: str
    bare: float
    unwatched: float | None
    watched: float
    bare_per_second: int
    watched_per_second: int
    lost_percent: float  # of connections per second
    lost_percent_cpu: float  # the same by processor time, which other work disturbs less
    dropped: int
    buffer_bytes: int


@dataclass(frozen=True, slots=True)
class _Sample:
    """Nanoseconds of one connection, by the clock and of processor time."""

    clock: float
    cpu: float


@dataclass(slots=True)
class _Row:
    bare: list[_Sample] = field(default_factory=list)
    unwatched: list[_Sample] = field(default_factory=list)
    watched: list[_Sample] = field(default_factory=list)
    dropped: int = 0


@dataclass(slots=True)
class Connections:
    """Runs the measurement; ``seconds`` of each variant in each round."""

    rounds: int
    seconds: float
    report: Callable[[str], None]
    modes: Sequence[str] = MODES
    unavailable: dict[str, str] = field(default_factory=dict)
    _rows: dict[str, _Row] = field(default_factory=dict)

    def run(self) -> list[ConnectionCost]:
        reap_leftovers()
        cpus = os.sched_getaffinity(0)
        with ExitStack() as stack:
            stack.callback(os.sched_setaffinity, 0, cpus)
            first, *others = sorted(cpus)
            os.sched_setaffinity(0, others or [first])  # what is started from here on, too
            for number in range(self.rounds):
                for mode in self.modes:
                    if mode not in self.unavailable:
                        self.report(f"connections, {mode}, round {number + 1} of {self.rounds}")
                        self._round(mode, first)
        return list(self._costs())

    def _round(self, mode: str, cpu: int) -> None:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapbridge-")))
            claim = stack.enter_context(Claim.take())
            topology = stack.enter_context(Topology(claim))
            pins = claim.pin_directory
            plain = stack.enter_context(Tracker(claim, ENTRIES, ("plain",)))
            url = stack.enter_context(ServerThread(directory / "nats")).url

            def connect() -> _Sample:
                return _connector(topology, cpu, self.seconds)

            topology.attach(plain.active.ingress, plain.active.egress)
            connect()  # what is done once, such as a neighbour's entry, is no one's cost
            row = self._rows.setdefault(mode, _Row())
            bare = connect()
            if mode in PROBED:
                other = pins / OTHER
                made = stack.enter_context(create_map(MapType.HASH, 40, 40, 16, name=OTHER))
                made.pin(other)
                stack.callback(other.unlink)
                entry = MapEntry(OTHER, other, Role.PUBLISH)

                def unwatched(_: NodeProcess) -> None:
                    row.unwatched.append(connect())

                if not self._started(mode, directory / "other", url, entry, unwatched):
                    return
            entry = MapEntry("ct", plain.active.map, Role.PUBLISH)
            if mode == EMIT:
                emitting = Tracker(claim, ENTRIES, ("emit",), emit=True, ring_bytes=RING_BYTES)
                tracker = stack.enter_context(emitting)
                entry = MapEntry("ct", tracker.active.map, Role.PUBLISH, tracker.active.emit)
                topology.attach(tracker.active.ingress, tracker.active.egress)

            def watched(node: NodeProcess) -> None:
                row.watched.append(connect())
                row.dropped += _dropped(node)

            if self._started(mode, directory / "watched", url, entry, watched):
                topology.attach(plain.active.ingress, plain.active.egress)
                row.bare += [bare, connect()]  # before and behind: a drift is nobody's cost

    def _started(
        self,
        mode: str,
        directory: Path,
        url: str,
        entry: MapEntry,
        measure: Callable[[NodeProcess], None],
    ) -> bool:
        """Measure beside a bridge; answers whether the kernel lets it have the mode."""
        capture = str(Mode.SWEEP) if mode == EMIT else mode
        directory.mkdir()
        try:
            with NodeProcess("a", directory, broker_url=url, maps=[entry], capture=capture) as node:
                node.await_running()
                measure(node)
        except BridgeError as error:
            if mode not in PROBED:
                raise
            self.unavailable[mode] = f"{error}; {error.hint}"
            self._rows.pop(mode, None)
            self.modes = [other for other in self.modes if other != mode]
            return False
        return True

    def _costs(self) -> Iterator[ConnectionCost]:
        for mode, row in self._rows.items():
            bare, watched = _median(row.bare), _median(row.watched)
            yield ConnectionCost(
                mode=mode,
                bare=round(bare.cpu),
                unwatched=round(_median(row.unwatched).cpu) if row.unwatched else None,
                watched=round(watched.cpu),
                bare_per_second=round(1e9 / bare.clock),
                watched_per_second=round(1e9 / watched.clock),
                lost_percent=round(100 * (1 - bare.clock / watched.clock), 1),
                lost_percent_cpu=round(100 * (1 - bare.cpu / watched.cpu), 1),
                dropped=row.dropped,
                buffer_bytes=0 if mode == Mode.SWEEP else RING_BYTES,
            )


def _median(samples: Sequence[_Sample]) -> _Sample:
    return _Sample(
        statistics.median(sample.clock for sample in samples),
        statistics.median(sample.cpu for sample in samples),
    )


def _dropped(node: NodeProcess) -> int:
    """Changes that the node knows to have lost, wherever, from a status newer than now."""
    now, deadline = time.time(), time.monotonic() + STATUS_SECONDS_MAX
    while node.status_written < now and time.monotonic() < deadline:
        time.sleep(0.05)
    capture = node.map_status().get("capture")
    losses = capture.get("losses") if isinstance(capture, dict) else None
    return sum(map(int, losses.values())) if isinstance(losses, dict) else 0


def _connector(topology: Topology, cpu: int, seconds: float) -> _Sample:
    where = [topology.client_namespace, topology.server_namespace, topology.server_ipv4]
    done = subprocess.run(
        [sys.executable, "-m", "bridge.bench.connector", *where, str(cpu), str(seconds)],
        capture_output=True,
        text=True,
        timeout=seconds + LATE_SECONDS,
        check=False,
    )
    if done.returncode:
        said = done.stderr.strip().splitlines()[-1:]
        raise ConnectorError(f"connections: ended with {done.returncode} (got {said})")
    result = json.loads(done.stdout)
    nano = 1e9 / max(int(result["connections"]), 1)
    return _Sample(float(result["seconds"]) * nano, float(result["cpu_seconds"]) * nano)
