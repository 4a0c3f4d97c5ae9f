"""The same TCP sessions kept by mapbridge and by conntrackd: processor time and delay.

Both run between the same two namespaces at the same time of day, one after the other: first some
connections one by one, to see when the other node knows of each; then many at once. mapbridge
carries the map of the example connection tracker, which emits its changes; conntrackd the kernel's
own table. A session that opens is three changes for either.
"""

from __future__ import annotations

import socket
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bridge.bench.conntrackd import Pair, require_conntrackd
from bridge.bench.peers import server_cpu_seconds
from bridge.demo.sessions import State, count_states
from bridge.demo.topology import Topology
from bridge.demo.tracker import Tracker
from bridge.demo.traffic import Traffic
from bridge.demo.traffic_worker import enter_namespace
from bridge.errors import BridgeError
from bridge.kernel.maps import KernelMap, open_pin
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim, reap_leftovers
from bridge.rig.compare import read_entries
from bridge.rig.nodes import MapEntry, NodeProcess

SESSIONS = 20_000
SINGLES = 101  # connections opened one by one
PORT = 7000
SETTLE_SECONDS_MAX = 60.0
OPEN_SECONDS_MAX = 300.0
SEEN_SECONDS_MAX = 10.0


@dataclass(frozen=True, slots=True)
class Kept:
    """One of the two. ``delay``: from before connect(2) until the other node knew of it."""

    name: str
    sessions: int
    missing: int  # sessions that the other node did not know of in the end
    changes: int
    cpu_us_per_change: float  # of both daemons
    cpu_us_per_change_broker: float
    delay_p50_ms: float
    delay_p99_ms: float


class SessionsError(BridgeError):
    """A session that was opened did not become known."""


def measure_sessions(count: int, report: Callable[[str], None]) -> list[Kept]:
    """mapbridge, then conntrackd. Raises ``UnavailableError`` when that is not there."""
    require_conntrackd()
    reap_leftovers()
    kept = []
    for name, measure in (("mapbridge", _mapbridge), ("conntrackd", _conntrackd)):
        report(f"{name}, {count:,} sessions")
        with ExitStack() as stack:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapbridge-")))
            claim = stack.enter_context(Claim.take())
            topology = stack.enter_context(Topology(claim))
            kept.append(measure(stack, directory, claim, topology, count))
    return kept


def _mapbridge(
    stack: ExitStack, directory: Path, claim: Claim, topology: Topology, count: int
) -> Kept:
    tracker = stack.enter_context(Tracker(claim, count, ("a", "b"), emit=True))
    url = stack.enter_context(ServerThread(directory / "nats")).url
    entries = (
        MapEntry("ct", tracker.pins["a"].map, Role.PUBLISH, tracker.pins["a"].emit),
        MapEntry("ct", tracker.pins["b"].map, Role.APPLY),
    )
    a, b = (
        stack.enter_context(NodeProcess(name, directory, broker_url=url, maps=[entry]))
        for name, entry in zip(("a", "b"), entries, strict=True)
    )
    a.await_running()
    b.await_running()
    replica = stack.enter_context(open_pin(tracker.pins["b"].map))
    topology.attach(tracker.active.ingress, tracker.active.egress)
    connect = stack.enter_context(_connections(topology))
    delays = _delays(connect, lambda: _established(replica))
    _settled(lambda: _applied(b), 3 * SINGLES)
    before, changed = replica.count(), _applied(b)
    used = a.cpu_seconds() + b.cpu_seconds()
    broker = server_cpu_seconds()
    with Traffic(topology, count, ipv6_every=0) as traffic:
        traffic.open()
        traffic.wait(OPEN_SECONDS_MAX)
        known = _settled(lambda: replica.count() - before, count)
        changes = _settled(lambda: _applied(b) - changed, 3 * count)
        used = a.cpu_seconds() + b.cpu_seconds() - used
        broker = server_cpu_seconds() - broker
    return _kept("mapbridge", count, known, changes, used, broker, delays)


def _conntrackd(
    stack: ExitStack, directory: Path, claim: Claim, topology: Topology, count: int
) -> Kept:
    primary, backup = stack.enter_context(Pair(claim, topology, directory))
    connect = stack.enter_context(_connections(topology))
    delays = _delays(connect, backup.external_established)
    before, events = backup.external().active, primary.internal().events
    used = primary.cpu_seconds() + backup.cpu_seconds()
    with Traffic(topology, count, ipv6_every=0) as traffic:
        traffic.open()
        traffic.wait(OPEN_SECONDS_MAX)
        known = _settled(lambda: backup.external().active - before, count)
        used = primary.cpu_seconds() + backup.cpu_seconds() - used
        changes = primary.internal().events - events
    return _kept("conntrackd", count, known, changes, used, 0.0, delays)


def _kept(
    name: str,
    count: int,
    known: int,
    changes: int,
    used: float,
    broker: float,
    delays: list[float],
) -> Kept:
    micro = 1e6 / max(changes, 1)
    return Kept(
        name=name,
        sessions=count,
        missing=count - known,
        changes=changes,
        cpu_us_per_change=round(used * micro, 2),
        cpu_us_per_change_broker=round(broker * micro, 2),
        delay_p50_ms=round(statistics.median(delays) * 1000, 2),
        delay_p99_ms=round(statistics.quantiles(delays, n=100)[98] * 1000, 2),
    )


def _applied(node: NodeProcess) -> int:
    return int(node.applied("changes"))


def _settled(count: Callable[[], int], wanted: int) -> int:
    """The count, when it is what it should be or time is up."""
    deadline = time.monotonic() + SETTLE_SECONDS_MAX
    while (found := count()) < wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return found


def _established(replica: KernelMap) -> int:
    return count_states(read_entries(replica)[1]).get(State.ESTABLISHED, 0)


def _delays(connect: Callable[[], None], known: Callable[[], int]) -> list[float]:
    """Seconds until the other node knows of a new connection, for ``SINGLES`` of them."""
    delays = []
    for number in range(1, SINGLES + 1):
        began = time.monotonic()
        connect()
        while known() < number:
            if time.monotonic() - began > SEEN_SECONDS_MAX:
                raise SessionsError(
                    f"session {number}: not known to the other node in {SEEN_SECONDS_MAX:g} s"
                )
        delays.append(time.monotonic() - began)
    return delays


@contextmanager
def _connections(topology: Topology) -> Iterator[Callable[[], None]]:
    """Opens one connection a call, from the clients' namespace to the server's, and keeps them."""
    sockets: list[socket.socket] = []

    def listen() -> None:
        enter_namespace(topology.server_namespace)
        listener = socket.create_server((topology.server_ipv4, PORT), backlog=SINGLES)
        sockets.append(listener)

    def connect() -> None:
        sockets.append(socket.create_connection((topology.server_ipv4, PORT), timeout=10))

    wanted, done = threading.Semaphore(0), threading.Semaphore(0)
    ended = threading.Event()
    failures: list[OSError] = []

    def work() -> None:  # a thread of its own, since it moves to another namespace
        try:
            listen()
            enter_namespace(topology.client_namespace)
            while wanted.acquire() and not ended.is_set():
                connect()
                done.release()
        except OSError as error:
            failures.append(error)
            done.release()

    def one() -> None:
        wanted.release()
        done.acquire()
        if failures:
            raise SessionsError(f"connection: refused (got {failures[0]})") from failures[0]

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield one
    finally:
        ended.set()
        wanted.release()
        thread.join()
        for each in sockets:
            each.close()
