"""What may happen in a run of the simulation; chosen by its seed."""

from __future__ import annotations

import random
from dataclasses import dataclass

from bridge.model import ConflictPolicy

OWN_KEY = 0  # what the first node alone writes, in walks with ``keeps``


@dataclass(frozen=True, slots=True)
class Profile:
    nodes: int
    contexts: tuple[int, ...]
    ring_rows_max: int
    crashes: bool
    reboots: bool
    away: bool
    publishes_only: bool
    saves: bool  # positions: a map that lived on is told from an empty one
    keeps: bool  # the first node alone writes one key, and must never lose what it wrote last
    leaders_change: bool  # messages are stored twice
    replaced: bool  # the log is made anew, or loses its newest messages
    in_place: tuple[bool, ...]  # by node: no probe sees its writes
    room: tuple[int | None, ...]  # by node: keys that its map holds
    lru: bool
    policy: ConflictPolicy
    jumps: bool  # of the nodes' clocks, forward
    snapshots: bool = False
    forgets: bool = False  # the log loses its oldest messages
    twins: bool = False  # the second node bears the first one's name
    guarded: bool = False  # mass changes wait for an operator
    lags: bool = False  # servers come back, and are read from before they have caught up

    @staticmethod
    def of_counters(rng: random.Random, contexts: tuple[int, ...], nodes: int) -> Profile:
        """Nodes that publish what they count, and a first one that adds it up."""
        return Profile(
            nodes=nodes,
            contexts=contexts,
            ring_rows_max=1 << 20,
            crashes=False,
            reboots=False,
            away=rng.random() < 0.4,
            publishes_only=True,
            saves=False,
            keeps=False,
            leaders_change=rng.random() < 0.4,
            replaced=False,
            in_place=(False,) * nodes,
            room=(None,) * nodes,
            lru=False,
            policy=ConflictPolicy.SUM,
            jumps=rng.random() < 0.3,
        )

    @staticmethod
    def choose(rng: random.Random) -> Profile:
        alone = rng.random() < 0.1
        crashes = not alone and rng.random() < 0.45
        ring_rows_max = 2 if not alone and rng.random() < 0.25 else 1 << 20
        contexts = rng.choice(((0,), (0,), (0, 2), (0, 1), (0, 1, 2)))
        reboots = crashes and rng.random() < 0.3
        saves = not alone and rng.random() < 0.8
        nodes = 1 if alone else rng.choice((2, 2, 3, 3, 4, 7))
        tight = not alone and rng.random() < 0.2
        sweeps = not alone and rng.random() < 0.25
        replaced = not alone and rng.random() < 0.12
        settled = alone or rng.random() < 0.7
        policy = ConflictPolicy.STREAM
        if not settled:
            policy = rng.choice((ConflictPolicy.OWNER, ConflictPolicy.MAX, ConflictPolicy.SUM))
        if policy is ConflictPolicy.SUM:
            return Profile.of_counters(rng, contexts, nodes)
        # Without races inside the node, losses or reboots nothing that it alone writes may go.
        calm = contexts == (0,) and ring_rows_max > 2 and not (reboots or tight or replaced)
        calm = calm and policy is not ConflictPolicy.MAX
        lru = tight and policy is ConflictPolicy.STREAM and rng.random() < 0.5
        snapshots = not (alone or lru) and policy is ConflictPolicy.STREAM and rng.random() < 0.5
        forgets = snapshots and not replaced and rng.random() < 0.7
        twins = nodes > 2 and not (crashes or replaced or forgets) and rng.random() < 0.15
        return Profile(
            nodes=nodes,
            contexts=contexts,
            ring_rows_max=ring_rows_max,
            crashes=crashes,
            reboots=reboots,
            away=rng.random() < 0.4,
            publishes_only=alone,
            saves=saves or snapshots,
            keeps=calm and (saves or not crashes) and not (forgets or twins),
            leaders_change=not alone and rng.random() < 0.4,
            replaced=replaced,
            in_place=tuple(sweeps and rng.random() < 0.5 for _ in range(nodes)),
            room=tuple(2 if tight and rng.random() < 0.6 else None for _ in range(nodes)),
            lru=lru,
            policy=policy,
            jumps=rng.random() < 0.3,
            snapshots=snapshots,
            forgets=forgets,
            twins=twins,
            guarded=not alone and rng.random() < 0.2,
            lags=not alone and rng.random() < 0.3,
        )
