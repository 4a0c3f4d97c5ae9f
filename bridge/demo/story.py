"""The demonstration, step by step: two nodes and a late one, one map, real connections.

Two bridges on one kernel have two maps, told apart by their pins; otherwise they are what they
would be on two machines. Node ``a`` publishes the map that the connection tracker writes, node
``b`` applies it, and node ``c`` starts when everything has happened and catches up from the stream.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from bridge.demo.topology import Topology
from bridge.demo.tracker import Tracker
from bridge.demo.traffic import Progress, Traffic
from bridge.errors import BridgeError
from bridge.kernel.maps import KernelMap, open_pin
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim, reap_leftovers
from bridge.rig.compare import Comparison, compare
from bridge.rig.nodes import MapEntry, NodeProcess

NODES = ("a", "b", "c")
OPEN_SECONDS_MAX = 900.0
CLOSE_SECONDS_MAX = 300.0
SYNC_SECONDS_MAX = 120.0
RATE_SECONDS = 0.9  # over which a rate is taken
LOOK_SECONDS = 0.25  # between two looks at the maps and at what the nodes say of themselves


class NotEqualError(BridgeError):
    """The maps differ at the end: what mapbridge is there to prevent."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What a person sees of the demonstration at one moment."""

    step: str
    capture: str = ""
    wanted: int = 0
    sessions: int = 0
    entries: tuple[int, ...] = ()  # of node a, b and, when it has started, c
    changes_per_second: float = 0.0  # applied by node b
    lag_seconds: float = 0.0  # from a write on node a until it is in node b's map
    seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result, as ``mapbridge demo --json`` prints it. Differences are those of b and of c."""

    sessions: int
    capture: str
    source_entries: int
    replica_entries: int
    late_entries: int
    missing: int
    wrong: int
    extra: int
    left: int  # entries on all nodes after the connections were closed
    seconds: float

    @property
    def equal(self) -> bool:
        return not (self.missing or self.wrong or self.extra or self.left)


@dataclass(slots=True)
class Story:
    """One demonstration. ``show`` gets every new scene."""

    sessions: int
    capture: str
    show: Callable[[Scene], None]
    _scene: Scene = field(default_factory=lambda: Scene("starting"))
    _began: float = field(default_factory=time.monotonic)
    _looked: float = 0.0
    _word: tuple[float, float] = (0.0, 0.0)
    _rate: float = 0.0

    def run(self) -> Outcome:
        """Raises ``BridgeError`` when a part fails; everything made is removed in any case."""
        reap_leftovers()
        with ExitStack() as stack:
            return self._play(stack)

    def _play(self, stack: ExitStack) -> Outcome:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapbridge-")))
        claim = stack.enter_context(Claim.take())
        self._next("loading the connection tracker", wanted=self.sessions)
        tracker = stack.enter_context(Tracker(claim, self.sessions, NODES))
        map_a, map_b, map_c = (
            stack.enter_context(open_pin(str(tracker.pins[node].map))) for node in NODES
        )
        self._next("starting nats-server")
        url = stack.enter_context(ServerThread(directory / "nats")).url

        def start(name: str, role: Role) -> NodeProcess:
            node = NodeProcess(
                name,
                directory,
                broker_url=url,
                maps=[MapEntry("ct", tracker.pins[name].map, role)],
                capture=self.capture,
            )
            return stack.enter_context(node)

        self._next("starting the bridges of nodes a and b")
        a, b = start("a", Role.PUBLISH), start("b", Role.APPLY)
        a.await_running()
        b.await_running()
        capture = a.capture_mode
        self._next("opening connections", capture=capture)
        topology = stack.enter_context(Topology(claim))
        topology.attach(tracker.active.ingress, tracker.active.egress)
        traffic = stack.enter_context(Traffic(topology, self.sessions))
        traffic.open()
        traffic.wait(OPEN_SECONDS_MAX, lambda progress: self._look(progress, b, [map_a, map_b]))
        self._next("waiting until node b has everything")
        self._await_equal(traffic, b, [map_a, map_b])
        self._next("starting node c, which was not there")
        c = start("c", Role.APPLY)
        c.await_running()
        self._await_equal(traffic, b, [map_a, map_b, map_c])
        self._next("comparing the maps entry by entry")
        outcome = self._outcome(traffic, capture, compare(map_a, map_b), compare(map_a, map_c))
        self._next("closing the connections")
        traffic.close()
        maps = [map_a, map_b, map_c]
        traffic.wait(CLOSE_SECONDS_MAX, lambda progress: self._look(progress, b, maps))
        self._await_equal(traffic, b, maps)
        left = sum(m.count() for m in maps)
        return replace(outcome, left=left, seconds=round(time.monotonic() - self._began, 2))

    def _next(self, step: str, **facts: object) -> None:
        self._scene = replace(self._scene, step=step, **facts)  # type: ignore[arg-type]
        self._show()

    def _show(self) -> None:
        self._scene = replace(self._scene, seconds=time.monotonic() - self._began)
        self.show(self._scene)

    def _look(self, progress: Progress, node: NodeProcess, maps: list[KernelMap]) -> None:
        """Take stock, at most every ``LOOK_SECONDS``."""
        now = time.monotonic()
        if now - self._looked < LOOK_SECONDS:
            return
        self._scene = replace(
            self._scene,
            sessions=progress.open,
            entries=tuple(m.count() for m in maps),
            changes_per_second=self._rate_of(node),
            lag_seconds=node.applied("lag_seconds"),
        )
        self._looked = now
        self._show()

    def _rate_of(self, node: NodeProcess) -> float:
        """Changes per second that the node applied between its last two words about itself."""
        written, changes = node.status_written, node.applied("changes")
        since, before = self._word
        if written - since >= RATE_SECONDS:
            self._rate = (changes - before) / (written - since) if since else 0.0
            self._word = (written, changes)
        return self._rate

    def _await_equal(self, traffic: Traffic, node: NodeProcess, maps: list[KernelMap]) -> None:
        """Wait until the last map equals the first; what is wrong when time is up, compare says."""
        deadline = time.monotonic() + SYNC_SECONDS_MAX
        while not compare(maps[0], maps[-1]).equal and time.monotonic() < deadline:
            self._look(traffic.progress(), node, maps)
            time.sleep(LOOK_SECONDS)
        self._looked = 0.0
        self._look(traffic.progress(), node, maps)

    def _outcome(self, traffic: Traffic, capture: str, b: Comparison, c: Comparison) -> Outcome:
        return Outcome(
            sessions=traffic.progress().open,
            capture=capture,
            source_entries=b.source_entries,
            replica_entries=b.replica_entries,
            late_entries=c.replica_entries,
            missing=b.missing + c.missing,
            wrong=b.wrong + c.wrong,
            extra=b.extra + c.extra,
            left=0,
            seconds=0.0,
        )
