"""A cluster as a seeded walk of small steps, and what must be true when it has come to rest."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from bridge.model import Delta, DeltaBatch
from tests.simulation.kernel import ABSENT, CONTEXTS, Kernel, entries, store
from tests.simulation.node import KEYS, Message, Node

ROUNDS_MAX = 400
OWN_KEY = 0


@dataclass(frozen=True, slots=True)
class Profile:
    """What may happen in a run; chosen by its seed."""

    nodes: int
    contexts: tuple[int, ...]
    ring_rows_max: int
    crashes: bool
    reboots: bool
    away: bool
    publishes_only: bool
    saves: bool  # positions: a map that lived on is told from an empty one
    keeps: bool  # the first node alone writes ``OWN_KEY``, and must never lose what it wrote last

    @staticmethod
    def choose(rng: random.Random) -> Profile:
        alone = rng.random() < 0.15
        crashes = not alone and rng.random() < 0.3
        ring_rows_max = 2 if not alone and rng.random() < 0.25 else 1 << 20
        contexts = rng.choice(((0,), (0, 2), (0, 1), (0, 1, 2)))
        reboots = crashes and rng.random() < 0.5
        saves = not alone and rng.random() < 0.7
        # Without races inside the node, losses or reboots nothing that it alone writes may go.
        keeps = contexts == (0,) and ring_rows_max > 2 and not reboots and (saves or not crashes)
        return Profile(
            nodes=1 if alone else rng.choice((2, 2, 3, 3, 4, 7)),
            contexts=contexts,
            ring_rows_max=ring_rows_max,
            crashes=crashes,
            reboots=reboots,
            away=rng.random() < 0.4,
            publishes_only=alone,
            saves=saves,
            keeps=keeps,
        )


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
        self.log: list[Delta] = []
        self.numbers: dict[tuple[str, int], int] = {}  # last message of each node's incarnation
        ring = self.profile.ring_rows_max
        self.nodes = [
            Node(f"n{i}", Kernel(ring), self.profile.publishes_only)
            for i in range(self.profile.nodes)
        ]
        for node in self.nodes:
            self.restart(node)

    def run(self) -> list[str]:
        steps = self._steps()
        weights = [weight * self.rng.choice((0.1, 0.5, 1, 2)) for _, weight in steps]
        actions = [action for action, _ in steps]
        count = self.rng.randint(60, 260) * len(self.nodes)
        for action in self.rng.choices(actions, weights, k=count):
            self._do(action, self.rng.choice(self.nodes))
        self.quiet = True
        for node in self.nodes:
            node.connected = True
        rest = [action for action, _ in steps if action not in (self.begin, self.crash, self.cut)]
        for _ in range(ROUNDS_MAX):
            did = [self._do(action, node) for node in self.nodes for action in rest * 3]
            if not any(did):
                return self.check()
        return ["no rest is reached"]

    def _steps(self) -> list[tuple[Callable[[Node], bool], float]]:
        steps: list[tuple[Callable[[Node], bool], float]] = [
            (self.begin, 2),
            (self.advance, 5),
            (lambda node: node.settle(self.now), 1),
            (lambda node: node.drain(self.now), 2),
            (self.send, 2),
            (self.stored, 2),
            (lambda node: node.judge(self.log, self.rng.randint(1, 3)), 2),
            (lambda node: node.land(self.now), 4),
            (lambda node: node.rejoin(self.log), 2),
            (lambda node: node.sweep(self.now, self.log), 3),
            (lambda node: node.reread(self.now), 2),
        ]
        if self.profile.crashes:
            steps.append((self.crash, 0.05))
        if self.profile.saves:
            steps.append((Node.save, 0.5))
        if self.profile.away:
            steps.append((self.cut, 0.2))
        return steps

    def _do(self, action: Callable[[Node], bool], node: Node) -> bool:
        self.now += 1
        before = len(self.log)
        did = action(node)
        if self.trace and did:
            print(self.now, node.name, getattr(action, "__name__", ""), node.kernel.map)
            for delta in self.log[before:]:
                print("   stream", delta.origin.node, entries(delta.batch))
        return did

    def begin(self, node: Node) -> bool:
        self.values += 1
        value = ABSENT if self.rng.random() < 0.3 else self.values
        context = self.rng.choice(self.profile.contexts)
        key = self.rng.randrange(KEYS)
        if self.profile.keeps and key == OWN_KEY and node is not self.nodes[0]:
            return False
        return node.kernel.begin(context, key, value, self.now)

    def advance(self, node: Node) -> bool:
        contexts = range(len(CONTEXTS))
        if self.quiet:
            did = [node.kernel.step(context, self.now) for context in contexts]
            return any(did)
        return node.kernel.step(self.rng.choice(contexts), self.now)

    def send(self, node: Node) -> bool:
        if not node.connected or node.sending is not None or not node.queue:
            return False
        whole = DeltaBatch.concatenate(node.queue)
        count = self.rng.randint(1, len(whole))
        batch = whole.take(slice(0, count))
        node.queue = [whole.take(slice(count, None))] if count < len(whole) else []
        delta = Delta(node.replica.origin, node.sent + 1, batch)
        node.sent += len(batch)
        node.sending = Message(delta, delta.last_sequence)
        return True

    def stored(self, node: Node) -> bool:
        """The message arrives, perhaps twice, or its answer is lost and it is sent again."""
        message = node.sending
        if message is None or not node.connected:
            return False
        known = self.numbers.get((node.name, node.incarnation), 0)
        if message.number > known:
            self.log.append(message.delta)
            self.numbers[node.name, node.incarnation] = message.number
            if not self.quiet and self.rng.random() < 0.05:
                self.log.append(message.delta)  # delivered twice
        if self.quiet or self.rng.random() < 0.8:
            node.sending = None
        return True

    def cut(self, node: Node) -> bool:
        node.connected = not node.connected
        return True

    def crash(self, node: Node) -> bool:
        if self.profile.keeps and node.saved is None:
            return False  # until its first position is saved a map is loaded, not rejoined
        if node.sending is not None and self.rng.random() < 0.5:
            self.log.append(node.sending.delta)  # under way when its sender died
        node.doubtful_crashes += node.replica.dirty_keys > 0
        if self.profile.reboots:
            node.kernel.reboot()
            node.saved = None
        self.restart(node)
        return True

    def restart(self, node: Node) -> None:
        self.incarnations += 1
        node.start(self.now, self.incarnations)

    def fold(self) -> dict[int, int]:
        state: dict[int, int] = {}
        seen: dict[tuple[str, int], int] = {}
        for delta in self.log:
            origin = (delta.origin.node, delta.origin.incarnation)
            if delta.last_sequence > seen.get(origin, 0):
                seen[origin] = delta.last_sequence
                for key, value in entries(delta.batch):
                    store(state, key, value)
        return state

    def check(self) -> list[str]:
        wrong, fold = [], self.fold()
        first = self.nodes[0].kernel
        if self.profile.keeps and first.map.get(OWN_KEY, ABSENT) != first.last.get(OWN_KEY, ABSENT):
            wrong.append(f"own key: {first.map.get(OWN_KEY)}, last written {first.last}")
        for node in self.nodes:
            if node.kernel.map != fold:
                wrong.append(f"{node.name}: map {node.kernel.map}, stream {fold}")
            if node.stale and not node.doubtful_crashes:
                wrong.append(f"{node.name}: published {node.stale} changes of others as its own")
            left = (node.replica.pending_rows, node.replica.dirty_keys, len(node.queue))
            if any(left):
                wrong.append(f"{node.name}: pending, dirty, queued left over: {left}")
        return wrong
