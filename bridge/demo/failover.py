"""The demonstration with failure: a router is lost with its sessions, and another takes its place.

Routers ``a`` and ``b`` stand between clients and a server. Both drop what belongs to no connection
that they know, as firewalls do, so a router without the state breaks every session. keepalived
moves the gateways' addresses; mapbridge keeps the maps equal, and its check script decides who may
have them. ``a`` is lost, ``b`` takes over; then ``a`` is there again, preferred and with an empty
map, and must not take over before it holds what ``b`` does.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bridge.demo.keepalived import PRIORITIES, Gate, Keepalived
from bridge.demo.routers import Routers
from bridge.demo.story import CLOSE_SECONDS_MAX, OPEN_SECONDS_MAX
from bridge.demo.telling import Scene, Telling
from bridge.demo.tracker import Tracker
from bridge.demo.traffic import Traffic
from bridge.errors import BridgeError
from bridge.kernel.maps import KernelMap, open_pin
from bridge.model import Role
from bridge.rig import tools
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim, reap_leftovers
from bridge.rig.compare import Comparison, compare
from bridge.rig.nodes import MapEntry, NodeProcess

NODES = ("a", "b")
TAKEOVER_SECONDS_MAX = 120.0
ANSWER_SECONDS_MAX = 60.0
POLL_SECONDS = 0.05
MORE_SESSIONS = 10  # one for each ten: opened while node a is away


class Failure(StrEnum):
    """What of node a survives: of a host nothing, of a reboot its state directory."""

    HOST = "host"
    REBOOT = "reboot"


class NoTakeoverError(BridgeError):
    """The addresses did not move to where they should be."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the check script of the new node a said from then on, and what its map held."""

    seconds: float  # since it was started
    exit_code: int
    entries: int


@dataclass(frozen=True, slots=True)
class FailoverOutcome:
    """The result, as ``mapbridge demo --fail --json`` prints it. Seconds are of the clock.

    ``at_takeover_*``: how the new node a's map differed from node b's when it got the addresses.
    """

    failure: str
    capture: str
    sessions_lost_with_a: int  # sessions that node a carried when it was lost
    takeover_seconds: float  # until node b had the addresses
    answered_by_b: int  # of these sessions, by a byte to and fro
    silence_seconds: float  # until the last of them was answered
    sessions: int  # in the end, those opened through node b included
    answers: list[Answer]
    return_seconds: float  # until the new node had the addresses
    at_takeover_missing: int
    at_takeover_wrong: int
    at_takeover_extra: int
    answered_by_a: int
    missing: int
    wrong: int
    extra: int
    left: int  # entries on both nodes after the connections were closed
    seconds: float

    @property
    def equal(self) -> bool:
        early = self.at_takeover_missing or self.at_takeover_wrong or self.at_takeover_extra
        return not (early or self.missing or self.wrong or self.extra or self.left)


@dataclass(slots=True)
class Machine:
    """A router with its map, its bridge and its keepalived; ``close`` removes all of it."""

    node: NodeProcess
    map: KernelMap
    gate: Gate
    keepalived: Keepalived
    close: Callable[[], None]


@dataclass(frozen=True, slots=True)
class Takeover:
    """Node b in node a's place."""

    seconds: float
    silence_seconds: float
    answered: int


@dataclass(frozen=True, slots=True)
class Return:
    """Node a there again: what its script said, and its map against node b's at its takeover."""

    answers: list[Answer]
    seconds: float
    early: Comparison


class Failover:
    """One demonstration. ``show`` gets every new scene."""

    def __init__(
        self, sessions: int, capture: str, failure: Failure, show: Callable[[Scene], None]
    ) -> None:
        self.sessions = sessions
        self.more_sessions = max(sessions // MORE_SESSIONS, 1)
        self.capture = capture
        self.failure = failure
        self._telling = Telling(show)
        self._machines: dict[str, Machine] = {}

    def run(self) -> FailoverOutcome:
        """Raises ``BridgeError`` when a part fails; everything made is removed in any case."""
        tools.require_tools("keepalived")
        reap_leftovers()
        with ExitStack() as stack:
            self._prepare(stack)
            return self._play()

    def _prepare(self, stack: ExitStack) -> None:
        temporary = tempfile.TemporaryDirectory(prefix="mapbridge-")
        self._directory = Path(stack.enter_context(temporary))
        self._claim = stack.enter_context(Claim.take())
        self._telling.step("starting nats-server")
        self._url = stack.enter_context(ServerThread(self._directory / "nats")).url
        self._routers = stack.enter_context(Routers(self._claim, NODES))
        stack.callback(self._close_machines)
        self._telling.step("starting routers a and b, each with a bridge and keepalived")
        for name in NODES:
            self._start(name)
        for name in NODES:
            gate = self._machines[name].gate
            _await(lambda gate=gate: gate.ask() == 0, f"node {name}: no synced map")  # type: ignore[misc]
        self._await_addresses("a")
        traffic = Traffic(self._routers, self.sessions + self.more_sessions)
        self._traffic = stack.enter_context(traffic)

    def _play(self) -> FailoverOutcome:
        tell, traffic = self._telling, self._traffic
        capture = self._machines["a"].node.capture_mode
        tell.step("opening connections through node a", capture=capture)
        self._open(self.sessions, "a", "b")
        tell.step(f"node a is lost, and with it the state of {self.sessions:,} sessions")
        takeover = self._lose_a()
        tell.step(f"opening {self.more_sessions:,} more through node b")
        self._open(self.more_sessions, "b")
        tell.step("node a starts again, preferred by keepalived, with an empty map")
        back = self._bring_back_a()
        tell.step("node a has the addresses: a byte to and fro in every session")
        answered = self._talk()
        tell.step("comparing the maps entry by entry")
        maps = self._maps("b", "a")
        tell.await_equal(traffic, self._machines["a"].node, maps)
        last = compare(maps["b"], maps["a"])
        sessions = traffic.progress().open
        tell.step("closing the connections")
        traffic.close()
        self._settle("b", "a")
        return FailoverOutcome(
            failure=str(self.failure),
            capture=capture,
            sessions_lost_with_a=self.sessions,
            takeover_seconds=takeover.seconds,
            answered_by_b=takeover.answered,
            silence_seconds=takeover.silence_seconds,
            sessions=sessions,
            answers=back.answers,
            return_seconds=back.seconds,
            at_takeover_missing=back.early.missing,
            at_takeover_wrong=back.early.wrong,
            at_takeover_extra=back.early.extra,
            answered_by_a=answered,
            missing=last.missing,
            wrong=last.wrong,
            extra=last.extra,
            left=sum(one.count() for one in maps.values()),
            seconds=round(tell.seconds, 2),
        )

    def _start(self, name: str) -> None:
        """A router with an empty map; its bridge and its keepalived begin at the same time."""
        with ExitStack() as undo:
            tracker = undo.enter_context(
                Tracker(self._claim, self.sessions * 2, [name], strict=True)
            )
            pins = tracker.active
            kernel_map = undo.enter_context(open_pin(str(pins.map)))
            self._routers.add(name, pins)
            node = NodeProcess(
                name,
                self._directory,
                broker_url=self._url,
                maps=[MapEntry("ct", pins.map, Role.REPLICATE)],
                capture=self.capture,
            )
            undo.enter_context(node)
            gate = Gate(node.state_directory, node.config_path)
            priority = PRIORITIES[NODES.index(name)]
            namespace = self._routers.namespace(name)
            keepalived = undo.enter_context(
                Keepalived(namespace, node.state_directory, gate, priority)
            )
            close = undo.pop_all().close
        self._machines[name] = Machine(node, kernel_map, gate, keepalived, close)

    def _lose_a(self) -> Takeover:
        """Everything of the host at once, as far as one after the other can be at once."""
        lost = self._machines.pop("a")
        asked = self._traffic.progress().answers
        began = time.monotonic()
        lost.keepalived.stop(kill=True)
        self._routers.lose("a")
        lost.node.process.kill()
        lost.close()
        if self.failure is Failure.HOST:
            shutil.rmtree(lost.node.state_directory)
        self._traffic.talk()
        self._await_addresses("b")
        seconds = time.monotonic() - began
        self._telling.step(
            f"node b has the addresses after {seconds:.1f} s: is every session alive?"
        )
        self._await_traffic(ANSWER_SECONDS_MAX, "b")
        answered = self._traffic.progress().answers - asked
        return Takeover(round(seconds, 2), round(time.monotonic() - began, 2), answered)

    def _bring_back_a(self) -> Return:
        began = time.monotonic()
        self._start("a")
        machine, answers = self._machines["a"], list[Answer]()
        while not self._routers.holds_gateway("a"):
            seconds, said = round(time.monotonic() - began, 2), machine.gate.ask()
            if not answers or answers[-1].exit_code != said:
                answers.append(Answer(seconds, said, machine.map.count()))
                self._tell_answer(answers[-1])
            if seconds > TAKEOVER_SECONDS_MAX:
                raise NoTakeoverError(
                    f"node a: no addresses after {seconds:.0f} s (its script says {said})",
                    hint=f"see {machine.keepalived.log_path}",
                )
        seconds = round(time.monotonic() - began, 2)
        return Return(answers, seconds, compare(self._machines["b"].map, machine.map))

    def _tell_answer(self, answer: Answer) -> None:
        verdict = "may take over" if answer.exit_code == 0 else "may not take over"
        self._telling.step(
            f"check script on node a: exit code {answer.exit_code}, {verdict}; "
            f"{answer.entries:,} entries"
        )

    def _talk(self) -> int:
        """How many sessions answered."""
        before = self._traffic.progress().answers
        self._traffic.talk()
        self._await_traffic(ANSWER_SECONDS_MAX, "b", "a")
        return self._traffic.progress().answers - before

    def _open(self, count: int, *names: str) -> None:
        self._traffic.open(count)
        self._await_traffic(OPEN_SECONDS_MAX, *names)
        if len(names) > 1:
            self._settle(*names)

    def _settle(self, *names: str) -> None:
        self._await_traffic(CLOSE_SECONDS_MAX, *names)
        node = self._machines[names[-1]].node
        self._telling.await_equal(self._traffic, node, self._maps(*names))

    def _await_traffic(self, seconds_max: float, *names: str) -> None:
        maps, node = self._maps(*names), self._machines[names[-1]].node
        self._traffic.wait(seconds_max, lambda now: self._telling.look(now, node, maps))

    def _maps(self, *names: str) -> dict[str, KernelMap]:
        return {name: self._machines[name].map for name in names}

    def _await_addresses(self, name: str) -> None:
        _await(lambda: self._routers.holds_gateway(name), f"node {name}: has no addresses")

    def _close_machines(self) -> None:
        while self._machines:
            self._machines.popitem()[1].close()


def _await(done: Callable[[], bool], trouble: str) -> None:
    deadline = time.monotonic() + TAKEOVER_SECONDS_MAX
    while not done():
        if time.monotonic() > deadline:
            raise NoTakeoverError(
                f"{trouble} in {TAKEOVER_SECONDS_MAX:.0f} s", hint="see what the kernel log says"
            )
        time.sleep(POLL_SECONDS)
