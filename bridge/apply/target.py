"""A map as the writer thread sees it: its judge, its writer, its counters, the age of changes."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bridge.apply.gate import ApplyGate
from bridge.apply.inbox import Arrival
from bridge.apply.latency import DelayHistogram
from bridge.apply.writer import MapWriter
from bridge.core.replica import Replica
from bridge.model import U8, Delta, DeltaBatch, Origin


@dataclass(slots=True)
class ApplyCounters:
    """What was applied to one map; the numbers only grow, but lag and ``unwritten``."""

    sequence: int = 0  # stream sequence up to which all writes are finished
    written_at: int = 0  # kernel time of the last write, ns
    messages: int = 0
    changes: int = 0  # foreign changes judged
    loaded: int = 0  # entries of snapshots
    swept_out: int = 0  # keys deleted because a snapshot lacked them
    updated: int = 0
    deleted: int = 0
    absent: int = 0
    refused: int = 0  # updates that found the map full, and were kept for later
    superseded: int = 0
    duplicates: int = 0
    missed: int = 0
    rejected: int = 0  # messages not applied, for sizes that differ
    failed: int = 0  # writes that the kernel broke off; the rest was kept for later
    retries: int = 0
    unwritten: int = 0  # changes that are kept for later now
    forgotten: int = 0  # of those, dropped because there were too many
    lag_seconds: float = 0.0  # age of the newest change of the last batch when it was in the map


class Fitter(Protocol):
    """Makes other nodes' changes fit this map. Twin: ``bridge.layout.fitting.Fitter``."""

    def fit(self, sequence: int, delta: Delta, own: Origin) -> Delta | None:
        """The changes as the map takes them; ``None``: they do not fit, and wait for nothing."""

    def local(self, writes: DeltaBatch, current: Callable[[U8], U8]) -> DeltaBatch:
        """Writes with the fields that stay the map's own."""


@dataclass(slots=True)
class ApplyTarget:
    """A map that the writer thread serves. ``lock`` is shared with the map's capture."""

    name: str
    replica: Replica
    writer: MapWriter
    lock: threading.Lock
    fitter: Fitter | None = None
    counters: ApplyCounters = field(default_factory=ApplyCounters)
    delays: DelayHistogram = field(default_factory=DelayHistogram)
    retry_at: float = math.inf  # on time.monotonic
    newest_at: float = -math.inf  # the same: when the newest change that is written was made
    # The map lived on while the bridge was away: nothing is written until all of the stream has
    # been judged. Whoever reads the stream sets ``caught_up`` then, the writer thread ends it.
    rejoining: bool = False
    caught_up: bool = False
    gate: ApplyGate | None = None

    def passes(
        self,
        arrivals: Sequence[Arrival],
        changes: Sequence[DeltaBatch] | None = None,
        *,
        joining: bool = False,
    ) -> bool:
        """Whether the gate lets them through now, see ``ApplyGate.admits``; else it holds them."""
        return self.gate is None or self.gate.admits(arrivals, changes, joining=joining)

    def measure(self, deltas: Sequence[Delta]) -> None:
        """Ages of the changes, from the sender's kernel time by way of both real-time clocks."""
        now = time.clock_gettime_ns(time.CLOCK_REALTIME)
        others = [delta for delta in deltas if delta.origin != self.replica.origin]
        if others:
            self.delays.add(_ages(others, now))
        newest = deltas[-1]
        age = now - int(newest.batch.left[-1]) - newest.clock_offset
        self.counters.lag_seconds = max(age, 0) / 1e9
        self.newest_at = time.monotonic() - self.counters.lag_seconds


def _ages(deltas: Sequence[Delta], now: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Of all changes, in one column: a node that catches up takes thousands of messages at once."""
    offsets = np.array([delta.clock_offset for delta in deltas], np.int64)
    left = np.concatenate([delta.batch.left for delta in deltas]).astype(np.int64)
    return now - np.repeat(offsets, [len(delta.batch) for delta in deltas]) - left
