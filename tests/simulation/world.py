"""A cluster as a seeded walk of small steps, and what must be true when it has come to rest."""

from __future__ import annotations

import random
from collections.abc import Callable

from bridge.bus.memory_snapshots import MemorySnapshotStore
from bridge.bus.snapshots import Snapshots
from bridge.core.guard import GuardLimits
from bridge.model import ConflictPolicy
from tests.simulation import checks
from tests.simulation.kernel import ABSENT, CONTEXTS, Kernel, entries
from tests.simulation.log import Log
from tests.simulation.node import KEYS, NO_GUARD, Node
from tests.simulation.profile import OWN_KEY, Profile
from tests.simulation.publisher import FencedError

ROUNDS_MAX = 150
STEPS_PER_SECOND = 20.0
QUIET_SECONDS = 10.0  # that pass with each round at the end
GUARDED = GuardLimits(deletes=0.4, changes=0.9, seconds=4.0, entries_min=2)
MESSAGES_MAX = 5_000  # far more than programs write in a walk

Step = Callable[[Node], bool]


class World:
    """``run`` answers with what is wrong, an empty list when nothing is."""

    def __init__(self, seed: int, *, trace: bool = False) -> None:
        self.rng = random.Random(seed)
        self.profile = Profile.choose(self.rng)
        self.now = 1
        self.values = 0
        self.incarnations = 0
        self.quiet = False
        self.trace = trace
        self.replaced = False
        self.peak = 0
        self.too_early: list[str] = []
        self.late = 0.0  # seconds that passed beside the steps
        self.log = Log(clock=self.seconds)
        self.snapshots = Snapshots(MemorySnapshotStore(), "c")
        self.nodes = [self._node(i) for i in range(self.profile.nodes)]
        for node in self.nodes:
            self.start(node)

    def _node(self, number: int) -> Node:
        profile = self.profile
        kernel = Kernel(
            profile.ring_rows_max,
            self.rng,
            ahead=self.rng.randrange(1 << 20),
            records=not profile.in_place[number],
            room=profile.room[number],
            lru=profile.lru,
        )
        adds_up = profile.policy is ConflictPolicy.SUM and number == 0
        publishes_only = profile.publishes_only and not adds_up
        return Node(
            "n0" if profile.twins and number == 1 else f"n{number}",
            kernel,
            self.log,
            self.snapshots,
            self.seconds,
            publishes_only,
            policy=profile.policy,
            applies_only=adds_up,
            limits=GUARDED if profile.guarded else NO_GUARD,
        )

    def seconds(self) -> float:
        return self.now / STEPS_PER_SECOND + self.late

    def run(self) -> list[str]:
        for _ in range(self.rng.randint(1, 4)):
            self._phase()
        self.quiet = True
        for node in self.nodes:
            node.connected, node.server_end = True, None
        rest = [action for action, _ in self._steps() if action != self.begin]
        for _ in range(ROUNDS_MAX):
            self.late += QUIET_SECONDS
            did = [self._do(action, node) for node in self.nodes for action in rest * 3]
            if not any(did):
                return checks.wrong_at_rest(self)
        return ["no rest is reached"]

    def _phase(self) -> None:
        """Some time in which each part is as fast or slow as it is; programs may rest meanwhile."""
        steps = self._steps() + self._faults()
        weights = [weight * self.rng.choice((0.1, 0.5, 1, 2)) for _, weight in steps]
        if self.rng.random() < 0.3:
            weights[0] = 0.0
        actions = [action for action, _ in steps]
        count = self.rng.randint(40, 120) * len(self.nodes)
        for action in self.rng.choices(actions, weights, k=count):
            self._do(action, self.rng.choice(self.nodes))

    def _steps(self) -> list[tuple[Step, float]]:
        steps: list[tuple[Step, float]] = [
            (self.begin, 2),
            (self.advance, 5),
            (self.start, 0.5),
            (self._up(lambda node: node.settle(self.time(node))), 1),
            (self._up(lambda node: node.drain(self.time(node))), 2),
            (self._up(self.send), 2),
            (lambda _: self.log.store(self.rng, leaders_change=self.leaders_change), 2),
            (self._up(self.settle), 2),
            (self._up(lambda node: node.join(self.time(node))), 3),
            (self._up(Node.notice), 1),
            (self._up(lambda node: node.release(self.time(node))), 1),
            (self._up(self.judge), 2),
            (self._up(self.look), 1),
            (self._up(lambda node: node.writer.land(self.time(node))), 4),
            (self._up(lambda node: node.rejoin(self.time(node))), 2),
            (self._up(lambda node: node.writer.retry(self.time(node))), 1),
            (self._up(lambda node: node.sweep(self.time(node), quiet=self.quiet)), 3),
            (self._up(lambda node: node.sweeper.reread(self.time(node))), 2),
        ]
        if self.profile.leaders_change:
            steps.append((lambda _: self.log.catch_up(), 0.2))
        if self.profile.saves:
            steps.append((self._up(Node.save), 2))
        if self.profile.guarded:
            steps.append((self._up(self.resume), 0.3))
        if self.profile.snapshots:
            steps.append((self._up(self.take), 4))
        return steps

    def _faults(self) -> list[tuple[Step, float]]:
        faults: list[tuple[Step, float]] = []
        if self.profile.crashes:
            faults.append((self._up(self.crash), 0.5))
        if self.profile.away:
            faults.append((self.cut, 0.2))
            faults.append((self._up(Node.merge), 0.5))
        if self.profile.replaced:
            faults.append((self.replace_log, 0.02))
        if self.profile.jumps:
            faults.append((self.jump, 0.1))
        if self.profile.forgets:
            faults.append((self.forget, 0.3))
        if self.profile.lags:
            faults.append((self.lag, 0.3))
        return faults

    @staticmethod
    def _up(action: Step) -> Step:
        return lambda node: node.up and action(node)

    @property
    def leaders_change(self) -> bool:
        return self.profile.leaders_change and not self.quiet

    def time(self, node: Node) -> int:
        """The node's own clock; those of two nodes have nothing in common."""
        return self.now + node.kernel.ahead

    def _do(self, action: Step, node: Node) -> bool:
        self.now += 1
        before = len(self.log)
        did = action(node)
        if len(self.log) > MESSAGES_MAX:
            raise RuntimeError(f"{len(self.log)} messages: somebody echoes")
        if node.up:
            self.peak = max(self.peak, len(node.replica._doubts.touches._list))
        if self.trace and did:
            print(self.now, node.name, getattr(action, "__name__", ""), node.kernel.map)
            for delta in self.log.messages[before:]:
                print("   stream", delta.origin.node, entries(delta.batch))
        return did

    def begin(self, node: Node) -> bool:
        if node.applies_only:
            return False
        self.values += 1
        value = ABSENT if self.rng.random() < 0.3 else self.values
        context = self.rng.choice(self.profile.contexts)
        key = self.rng.randrange(KEYS)
        if self.profile.keeps and key == OWN_KEY and node is not self.nodes[0]:
            return False
        return node.kernel.begin(context, key, value, self.time(node))

    def advance(self, node: Node) -> bool:
        contexts = range(len(CONTEXTS))
        if self.quiet:
            did = [node.kernel.step(context, self.time(node)) for context in contexts]
            return any(did)
        return node.kernel.step(self.rng.choice(contexts), self.time(node))

    def send(self, node: Node) -> bool:
        return node.connected and node.publisher.send(self.log, self.rng)

    def settle(self, node: Node) -> bool:
        try:
            return node.connected and node.publisher.settle(self.log, self.rng, patient=self.quiet)
        except FencedError:
            if not self.profile.twins:
                raise
            node.crash()
            node.fenced = True  # its supervisor does not start it again
            return True

    def judge(self, node: Node) -> bool:
        return node.judge(self.rng.randint(1, 3), self.time(node))

    def look(self, node: Node) -> bool:
        self.too_early += checks.said_too_early(self, node)
        return False

    def take(self, node: Node) -> bool:
        asked = not self.quiet and self.rng.random() < 0.05
        return node.taker.step(self.seconds(), self.time(node), asked=asked)

    def resume(self, node: Node) -> bool:
        return (self.quiet or self.rng.random() < 0.2) and node.resume()

    def forget(self, _: Node) -> bool:
        """The log loses its oldest messages, but none that nobody could ever tell again."""
        log = self.log
        upto = self.rng.randint(log.first - 1, len(log))
        if upto < log.first or not self._recoverable(upto):
            return False
        log.first = upto + 1
        return True

    def _recoverable(self, upto: int, without: Node | None = None) -> bool:
        """Whether a snapshot holds everything up to there, or a node that can take one does."""
        if upto == 0 or any(m.position >= upto for m in self.nodes[0].manifests()):
            return True
        return any(
            node.up
            and node.following
            and node.sweeper.scanned
            and node.joining is None
            and node.marks.verified >= upto
            and node.kernel.room is None
            for node in self.nodes
            if node is not without
        )

    def cut(self, node: Node) -> bool:
        node.connected = not node.connected
        if node.connected:
            node.ask()
        return True

    def lag(self, node: Node) -> bool:
        """The server that a node reads from lacks the log's newest messages, or has all again."""
        lags = node.server_end is None and len(self.log) > 0
        lacking = self.rng.randint(1, min(6, len(self.log))) if lags else 0
        node.server_end = len(self.log) - lacking if lags else None
        if lags and node.misled_since is None:
            node.misled_since = node.asked_at
        return True

    def jump(self, node: Node) -> bool:
        node.kernel.ahead += self.rng.choice((7, 1_009, 1 << 33))
        return True

    def crash(self, node: Node) -> bool:
        if self.profile.keeps and node.saved is None:
            return False  # until its first position is saved a map is loaded, not rejoined
        if self.profile.snapshots and not (node.bridged or self.profile.reboots):
            return False  # nobody could tell that the map holds what others wrote
        if self.log.first > 1 and not self._recoverable(self.log.first - 1, without=node):
            return False
        node.crash()
        under_way = [a for a in self.log.wire if a.delta.origin.node == node.name]
        for attempt in under_way:
            # What a dead bridge had under way may be stored at any time, or never.
            if self.profile.keeps or self.rng.random() < 0.3:
                self.log.wire.remove(attempt)
        if self.profile.reboots:
            node.kernel.reboot()
            node.saved, node.bridged = None, False
        return True

    def start(self, node: Node) -> bool:
        if node.up or node.fenced:
            return False
        self.incarnations += 1
        return node.start(self.time(node), self.incarnations)

    def replace_log(self, _: Node) -> bool:
        """The nodes notice at once: the log's id is another, or it ends before what they had."""
        if self.rng.random() < 0.5:
            self.log.recreate()
        else:
            self.log.cut(min(self.rng.randint(1, 3), len(self.log)))
        self.replaced = True
        for node in self.nodes:
            if node.up:
                node.crash()
            if node.saved is not None and node.saved > (self.log.generation, len(self.log)):
                node.saved = None
        return True
