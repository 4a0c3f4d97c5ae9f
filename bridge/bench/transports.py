"""The same changes through mapbridge and through what people use instead, in one run.

The changes are recorded once (``recorded.py``). Each of the others sends them to a process that
writes them to a map, one system call each, and answers; the map is then compared with what it must
hold. They neither capture nor store anything. mapbridge does all of it: its generator makes the
same changes again, they are captured, stored in a file by JetStream, and written to a map.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from bridge.bench.churn import MAP
from bridge.bench.peers import Peer, go_peer, python_peer, server_cpu_seconds
from bridge.bench.recorded import RECORD, Recorded, record
from bridge.bench.sessions import SESSIONS, Kept, measure_sessions
from bridge.bench.sync_rate import SyncRate
from bridge.errors import BridgeError, UnavailableError
from bridge.kernel.maps import KernelMap, MapType, create_map
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim, reap_leftovers

CHANGES = 1 << 20  # in the file; a transport that is faster starts it again
MAP_ENTRIES = 1 << 17
OURS, CONNTRACKD = "mapbridge", "conntrackd"
GO, GO_GRPC, PYTHON_GRPC, NATS = "go", "go-grpc", "grpc_python", "nats_json"

# By name: what runs it, and what that calls it.
OTHERS = {
    "netrpc-entry": (GO, "netrpc-entry"),
    "netrpc-block": (GO, "netrpc-block"),
    "netrpc-raw-block": (GO, "netrpc-raw-block"),
    **{
        f"grpc-go-{form}": (GO_GRPC, f"grpc-go-{form}")
        for form in ("any-entry", "any-stream", "typed-entry", "typed-stream")
    },
    **{
        f"grpc-python-{form}": (PYTHON_GRPC, form)
        for form in ("any-entry", "any-stream", "typed-entry", "typed-stream")
    },
    "nats-json": (NATS, "json"),
}


@dataclass(frozen=True, slots=True)
class Carried:
    """Medians of one transport. ``cpu_us``: processor time for each change, by process."""

    name: str
    changes: int  # of all rounds
    changes_per_second: int
    missing: int  # entries that differ from what the map must hold, of all rounds
    cpu_us_sender: float
    cpu_us_receiver: float
    cpu_us_ends: float  # both together
    cpu_us_broker: float | None  # None: there is none
    mapbridge_ratio: float | None  # changes per second of mapbridge against this one's
    cpu_ratio: float | None  # processor time per change of this one, all processes, against ours


@dataclass(frozen=True, slots=True)
class Transports:
    """The answer. ``unavailable``: by name, why it was not measured and how to mend it."""

    seconds: float
    rounds: int
    recorded: int
    transports: list[Carried]
    sessions: list[Kept]  # mapbridge and conntrackd on the same TCP sessions
    unavailable: dict[str, str]


@dataclass(slots=True)
class _Samples:
    rates: list[float] = field(default_factory=list)
    sender: list[float] = field(default_factory=list)
    receiver: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    broker: list[float] = field(default_factory=list)
    changes: int = 0
    missing: int = 0


@dataclass(slots=True)
class Comparison:
    """One run: ``rounds`` times all of ``names`` in turn, mapbridge first."""

    seconds: float
    rounds: int
    report: Callable[[str], None]
    names: Sequence[str] = tuple(OTHERS)
    changes: int = CHANGES
    sessions: int = SESSIONS  # 0: none
    _samples: dict[str, _Samples] = field(default_factory=dict)
    _unavailable: dict[str, str] = field(default_factory=dict)

    def run(self) -> Transports:
        reap_leftovers()
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapbridge-")))
            claim = stack.enter_context(Claim.take())
            claim.pin_directory.mkdir(parents=True)
            commands = self._commands(stack)
            self.report("recording the changes")
            path = directory / "changes"
            recorded = record(self.changes, claim.pin_directory / "source", path)
            for number in range(self.rounds):
                where = f"round {number + 1} of {self.rounds}" if self.rounds > 1 else ""
                self._ours(where)
                for name, command in commands.items():
                    self.report(f"{name}, {self.seconds:g} s {where}".rstrip())
                    with ExitStack() as each:
                        self._other(each, name, command, recorded, claim.pin_directory / name)
        return Transports(
            self.seconds,
            self.rounds,
            len(recorded.changes),
            list(self._carried()),
            self._kept(),
            self._unavailable,
        )

    def _kept(self) -> list[Kept]:
        if not self.sessions:
            return []
        try:
            return measure_sessions(self.sessions, self.report)
        except UnavailableError as error:
            self._unavailable[CONNTRACKD] = f"{error}; {error.hint}"
            return []

    def _commands(self, stack: ExitStack) -> dict[str, list[str]]:
        """By name, what to start; what cannot be started is noted with the reason."""
        built: dict[str, list[str] | UnavailableError] = {}
        commands = {}
        for name in self.names:
            runner = OTHERS[name][0]
            if runner not in built:
                try:
                    built[runner] = self._built(stack, runner)
                except UnavailableError as error:
                    built[runner] = error
            found = built[runner]
            if isinstance(found, UnavailableError):
                self._unavailable[name] = f"{found}; {found.hint}"
            else:
                commands[name] = found
        return commands

    def _built(self, stack: ExitStack, runner: str) -> list[str]:
        if runner in (GO, GO_GRPC):
            self.report(f"building {runner}")
            return stack.enter_context(go_peer(grpc=runner == GO_GRPC))
        return python_peer(runner)

    def _ours(self, where: str) -> None:
        def report(text: str) -> None:
            self.report(f"{OURS}, {text} {where}".rstrip())

        (rate,) = SyncRate(self.seconds, report).run()
        samples = self._samples.setdefault(OURS, _Samples())
        samples.sender.append(rate.cpu_us.publisher)
        samples.receiver.append(rate.cpu_us.replicas)
        samples.ends.append(samples.sender[-1] + samples.receiver[-1])
        samples.broker.append(rate.cpu_us.server)
        samples.rates.append(rate.changes_per_second)
        samples.changes += rate.changes
        samples.missing += rate.missing

    def _other(
        self, stack: ExitStack, name: str, command: list[str], recorded: Recorded, pin: Path
    ) -> None:
        runner, transport = OTHERS[name]
        environment, broker = {}, 0.0
        if runner == NATS:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapbridge-")))
            environment["NATS_URL"] = stack.enter_context(ServerThread(directory)).url
        replica = stack.enter_context(_replica(pin))
        receive = [*command, "receive", transport, str(pin)]
        receiver = stack.enter_context(Peer(receive, environment))
        address = receiver.address()
        send = [*command, "send", transport, str(recorded.path), address, str(self.seconds)]
        sender = stack.enter_context(Peer(send))
        sender.address()
        used = sender.cpu_seconds(), receiver.cpu_seconds()
        if runner == NATS:
            broker = server_cpu_seconds()
        count, seconds = sender.send(self.seconds)
        if count == 0:
            raise BridgeError(f"{name}: carried nothing in {seconds:.1f} s")
        samples = self._samples.setdefault(name, _Samples())
        micro = 1e6 / count
        samples.sender.append((sender.cpu_seconds() - used[0]) * micro)
        samples.receiver.append((receiver.cpu_seconds() - used[1]) * micro)
        samples.ends.append(samples.sender[-1] + samples.receiver[-1])
        if runner == NATS:
            samples.broker.append((server_cpu_seconds() - broker) * micro)
        samples.rates.append(count / seconds)
        samples.changes += count
        found = recorded.compare(count, replica)
        samples.missing += found.missing + found.wrong + found.extra

    def _carried(self) -> Iterator[Carried]:
        found = {name: _row(name, samples) for name, samples in self._samples.items()}
        ours = found[OURS]
        for name, row in found.items():
            if name != OURS:
                row = replace(  # noqa: PLW2901
                    row,
                    mapbridge_ratio=round(ours.changes_per_second / row.changes_per_second, 2),
                    cpu_ratio=round(_whole(row) / max(_whole(ours), 1e-3), 1),
                )
            yield row


def _row(name: str, samples: _Samples) -> Carried:
    return Carried(
        name=name,
        changes=samples.changes,
        changes_per_second=round(_median(samples.rates)),
        missing=samples.missing,
        cpu_us_sender=_median(samples.sender),
        cpu_us_receiver=_median(samples.receiver),
        cpu_us_ends=_median(samples.ends),
        cpu_us_broker=_median(samples.broker) if samples.broker else None,
        mapbridge_ratio=None,
        cpu_ratio=None,
    )


def _whole(row: Carried) -> float:
    return row.cpu_us_ends + (row.cpu_us_broker or 0.0)


def _median(samples: Sequence[float]) -> float:
    return round(statistics.median(samples), 3)


@contextmanager
def _replica(pin: Path) -> Iterator[KernelMap]:
    """An empty map of the changes' shape, pinned."""
    key, value = RECORD["key"].itemsize, RECORD["value"].itemsize
    made = create_map(MapType.HASH, key, value, MAP_ENTRIES, name=MAP)
    try:
        made.pin(pin)
        yield made
    finally:
        made.close()
        pin.unlink(missing_ok=True)
