"""The cluster as this node sees it, for whoever looks at its page.

Invariant: a look never waits for the event loop and costs it nothing by itself. It leaves the wish
to be told here; the loop asks the other nodes at most once a second, and only while somebody looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

LOOKED_AT_SECONDS = 10.0  # so long after a look the nodes are asked on
NODES_PER_SECOND = 100  # of answers to one node: many nodes are asked less often


SILENT_SECONDS = 4.0  # several questions without an answer
FORGOTTEN_SECONDS = 300.0  # a node that has gone for good is shown for so long


class Roll:
    """The nodes heard of lately, by name: one that does not answer any more is not just missing."""

    def __init__(self) -> None:
        self._heard: dict[str, tuple[float, Mapping[str, object]]] = {}

    def hear(self, answers: Sequence[Mapping[str, object]], now: float) -> list[dict[str, object]]:
        """Each node's last word, with ``silent_seconds``; ``now``: steady seconds."""
        self._heard |= {str(answer.get("node")): (now, answer) for answer in answers}
        for name, (at, _) in list(self._heard.items()):
            if now - at > FORGOTTEN_SECONDS:
                del self._heard[name]
        return [
            {**answer, "silent_seconds": round(now - at, 3)}
            for _, (at, answer) in sorted(self._heard.items())
        ]


@dataclass(frozen=True, slots=True)
class _Seen:
    nodes: Sequence[Mapping[str, object]]
    at: float


class Neighbours:
    """Written by the event loop, read by any thread. ``clock``: steady seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._seen: _Seen | None = None
        self._looked_at = float("-inf")
        self._roll = Roll()

    def look(self) -> dict[str, object]:
        """What the nodes said last, and how long ago; asks for more of it."""
        now, seen = self._clock(), self._seen
        self._looked_at = now
        return {
            "nodes": [] if seen is None else seen.nodes,
            "age_seconds": None if seen is None else round(now - seen.at, 3),
        }

    def wanted(self) -> bool:
        """Whether somebody has looked a short while ago."""
        return self._clock() - self._looked_at < LOOKED_AT_SECONDS

    @property
    def pause_seconds(self) -> float:
        """Until the nodes may be asked again."""
        return max(1.0, 0.0 if self._seen is None else len(self._seen.nodes) / NODES_PER_SECOND)

    def tell(self, nodes: Sequence[Mapping[str, object]]) -> None:
        now = self._clock()
        self._seen = _Seen(self._roll.hear(nodes, now), now)
