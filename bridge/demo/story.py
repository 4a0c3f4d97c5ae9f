"""The demonstration, step by step: two nodes and a late one, one map, real connections.

Two bridges on one kernel have two maps, told apart by their pins; otherwise they are what they
would be on two machines. Node ``a`` publishes the map that the connection tracker writes, node
``b`` applies it, and node ``c`` starts when everything has happened and catches up from the stream.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from bridge.demo.telling import Scene, Telling
from bridge.demo.topology import Topology
from bridge.demo.tracker import Tracker
from bridge.demo.traffic import Traffic
from bridge.errors import BridgeError
from bridge.kernel.maps import open_pin
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim, reap_leftovers
from bridge.rig.compare import Comparison, compare
from bridge.rig.nodes import MapEntry, NodeProcess

NODES = ("a", "b", "c")
OPEN_SECONDS_MAX = 900.0
CLOSE_SECONDS_MAX = 300.0


class NotEqualError(BridgeError):
    """The maps differ at the end: what mapbridge is there to prevent."""


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


class Story:
    """One demonstration. ``show`` gets every new scene; node b serves its page at ``listen``."""

    def __init__(
        self, sessions: int, capture: str, show: Callable[[Scene], None], *, listen: str = ""
    ) -> None:
        self.sessions = sessions
        self.capture = capture
        self._page = f"[http]\nlisten = {json.dumps(listen)}\n" if listen else ""
        self._telling = Telling(show)

    def run(self) -> Outcome:
        """Raises ``BridgeError`` when a part fails; everything made is removed in any case."""
        reap_leftovers()
        with ExitStack() as stack:
            return self._play(stack)

    def _play(self, stack: ExitStack) -> Outcome:
        tell = self._telling
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mapbridge-")))
        claim = stack.enter_context(Claim.take())
        tell.step("loading the connection tracker", wanted=self.sessions)
        tracker = stack.enter_context(Tracker(claim, self.sessions, NODES))
        map_a, map_b, map_c = (
            stack.enter_context(open_pin(str(tracker.pins[node].map))) for node in NODES
        )
        tell.step("starting nats-server")
        url = stack.enter_context(ServerThread(directory / "nats")).url

        def start(name: str, role: Role) -> NodeProcess:
            node = NodeProcess(
                name,
                directory,
                broker_url=url,
                maps=[MapEntry("ct", tracker.pins[name].map, role)],
                capture=self.capture,
                more=self._page if name == "b" else "",
            )
            return stack.enter_context(node)

        tell.step("starting the bridges of nodes a and b")
        a, b = start("a", Role.PUBLISH), start("b", Role.APPLY)
        a.await_running()
        b.await_running()
        capture = a.capture_mode
        tell.step("opening connections", capture=capture)
        topology = stack.enter_context(Topology(claim))
        topology.attach(tracker.active.ingress, tracker.active.egress)
        traffic = stack.enter_context(Traffic(topology, self.sessions))
        traffic.open()
        maps = {"a": map_a, "b": map_b}
        traffic.wait(OPEN_SECONDS_MAX, lambda progress: tell.look(progress, b, maps))
        tell.step("waiting until node b has everything")
        tell.await_equal(traffic, b, maps)
        tell.step("starting node c, which was not there")
        c = start("c", Role.APPLY)
        c.await_running()
        maps["c"] = map_c
        tell.await_equal(traffic, b, maps)
        tell.step("comparing the maps entry by entry")
        outcome = self._outcome(traffic, capture, compare(map_a, map_b), compare(map_a, map_c))
        tell.step("closing the connections")
        traffic.close()
        traffic.wait(CLOSE_SECONDS_MAX, lambda progress: tell.look(progress, b, maps))
        tell.await_equal(traffic, b, maps)
        left = sum(one.count() for one in maps.values())
        return replace(outcome, left=left, seconds=round(tell.seconds, 2))

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
