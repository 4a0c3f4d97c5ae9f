"""The broker's log with JetStream's semantics, in steps.

A publish is conditional on the last message of its node's subject, and travels: it may be stored
long after its sender gave up or died, or never. After a change of leader the new one may not have
applied yet what the old one had stored: a sender that asks is told so, and is stored twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from bridge.core.snapshots import Log as View
from bridge.model import ConflictPolicy, Delta, Op
from tests.simulation.kernel import ABSENT, entries, store


@dataclass(slots=True)
class Attempt:
    """One publish. ``answer``: its sequence, 0 when refused; ``None``: unknown to its sender."""

    delta: Delta
    expected: int
    answer: int | None = None


@dataclass(slots=True)
class Log:
    messages: list[Delta] = field(default_factory=list)  # number i has sequence i + 1
    wire: list[Attempt] = field(default_factory=list)
    times: list[float] = field(default_factory=list)  # of storing, by message
    clock: Callable[[], float] = lambda: 0.0
    first: int = 1  # older messages are forgotten, here kept for what must come out
    generation: int = 0  # the log's id
    unseen: set[str] = field(default_factory=set)  # nodes whose last message the leader lacks
    duplicates: int = 0
    parts: dict[str, dict[int, int]] = field(default_factory=dict)  # by node, of the last fold
    _ends: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.messages)

    def last(self, node: str) -> int:
        """The sequence of the newest message of a node's subject, as the leader knows it."""
        return self._ends.get(node, 0)

    def store(self, rng: random.Random, *, leaders_change: bool) -> bool:
        """One message arrives, any of those under way."""
        if not self.wire:
            return False
        attempt = self.wire.pop(rng.randrange(len(self.wire)))
        node = attempt.delta.origin.node
        if attempt.expected != self.last(node):
            attempt.answer = 0
            return True
        self.duplicates += any(message is attempt.delta for message in self.messages)
        self.messages.append(attempt.delta)
        self.times.append(self.clock())
        if leaders_change and rng.random() < 0.4:
            self.unseen.add(node)  # and the answer is lost
            return True
        self.unseen.discard(node)
        self._ends[node] = len(self.messages)
        attempt.answer = len(self.messages)
        return True

    def view(self) -> View:
        """What the rules of snapshots and of joining are told of it."""
        return View(str(self.generation), min(self.first, len(self) + 1), len(self))

    def stored_at(self, sequence: int) -> int | None:
        """When a message was stored, which tells it from another one in its place."""
        if not self.first <= sequence <= len(self):
            return None
        return int(self.times[sequence - 1] * 1e6)

    def catch_up(self) -> bool:
        """The leader has applied everything."""
        did = bool(self.unseen)
        for node in self.unseen:
            self._ends[node] = self._end_of(node)
        self.unseen.clear()
        return did

    def carries(self, attempt: Attempt) -> bool:
        return any(one is attempt for one in self.wire)

    def recreate(self) -> None:
        """Somebody removed the stream, and it was made anew."""
        self.generation += 1
        self.cut(len(self.messages))

    def cut(self, count: int) -> None:
        """The newest messages are gone although they were acknowledged."""
        del self.messages[len(self.messages) - count :], self.times[len(self.times) - count :]
        self.wire.clear()
        self.unseen.clear()
        self._ends = {node: self._end_of(node) for node in self._ends}

    def fold(self, policy: ConflictPolicy) -> dict[int, int]:
        """What a map holds that takes every message once, in order."""
        state: dict[int, int] = {}
        owners: dict[int, str] = {}
        seen: dict[tuple[str, int], int] = {}
        for delta in self.messages:
            origin = (delta.origin.node, delta.origin.incarnation)
            if delta.last_sequence > seen.get(origin, 0):
                seen[origin] = delta.last_sequence
                for (key, value), op in zip(entries(delta.batch), delta.batch.ops, strict=True):
                    if op == Op.EVICT:
                        continue
                    store(self.parts.setdefault(delta.origin.node, {}), key, value)
                    if policy is ConflictPolicy.OWNER:
                        if owners.setdefault(key, delta.origin.node) != delta.origin.node:
                            continue
                        if value == ABSENT:
                            del owners[key]
                    elif policy is ConflictPolicy.MAX and value != ABSENT:
                        store(state, key, max(value, state.get(key, value)))
                        continue
                    store(state, key, value)
        return state

    @property
    def sums(self) -> dict[int, int]:
        """Of all nodes' parts."""
        keys = {key for part in self.parts.values() for key in part}
        return {key: sum(part.get(key, 0) for part in self.parts.values()) for key in keys}

    def _end_of(self, node: str) -> int:
        numbers = range(len(self.messages), 0, -1)
        return next((n for n in numbers if self.messages[n - 1].origin.node == node), 0)
