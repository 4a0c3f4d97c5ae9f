"""Reading a map's contents: behind the probes at the start and after losses, or again and again.

Order matters more than speed here. An operation is recorded after it has happened, so whatever a
scan saw of an operation is confirmed or overtaken by that operation's own record, provided that a
chunk of the scan is handed on *before* the records that are drained after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from bridge.capture.source import ChangeSource, Losses
from bridge.core.fingerprints import Differences
from bridge.errors import BridgeError
from bridge.model import U8, Cause, DeltaBatch, MapInfo, Op

SCAN_POLL_SECONDS = 0.02
REPAIR_POLL_SECONDS = 0.25  # until a repair that was asked for begins


Share = Callable[[list[tuple[U8, U8]]], None]


class Scannable(Protocol):
    """The part of a kernel map that a scan needs."""

    @property
    def info(self) -> MapInfo: ...
    def scan(self) -> Iterator[tuple[U8, U8]]: ...


class Comparison(Protocol):
    """The map's replica under its lock."""

    def drained(self, now: int) -> None: ...
    def begin_scan(self, now: int) -> None: ...
    def compare(self, keys: U8, values: U8, *, complete: bool) -> Differences: ...


class SweepSource:
    """Sees changes by comparing the whole map with the fold of the stream at an interval.

    ``ready`` opens the first sweep: a node that also applies must know what the stream says before
    it can tell what is new. The changes that the first sweep finds are marked as found by a scan.
    """

    def __init__(
        self,
        target: Scannable,
        comparison: Comparison,
        *,
        interval_seconds: float,
        ready: Callable[[], bool],
    ) -> None:
        self._map = target
        self._comparison = comparison
        self._ready = ready
        self.interval = interval_seconds
        self.sweeps = 0
        self.sweep_seconds = 0.0  # duration of the last one
        self.deferred = 0
        self._share: Share | None = None

    def share(self, take: Share) -> None:
        """Give the contents that the next sweep reads to ``take`` too. From any thread."""
        self._share = take

    def fileno(self) -> int | None:
        return None

    def drain(self) -> list[DeltaBatch]:
        # Asked only when everything found before has been taken.
        self._comparison.drained(_ktime_ns())
        if not self._ready():
            return []
        info = self._map.info
        share, self._share = self._share, None
        began = _ktime_ns()
        self._comparison.begin_scan(began)
        chunks = list(self._map.scan())
        ended = _ktime_ns()
        found = compare_whole(chunks, info, self._comparison)
        if share is not None:
            share(chunks)
        cause = Cause.CHANGE if self.sweeps else Cause.SCAN
        self.sweeps += 1
        self.sweep_seconds = (_ktime_ns() - began) / 1e9
        self.deferred += found.deferred
        return _as_batches(found, info, began, ended, cause)

    def losses(self) -> Losses:
        return Losses()

    def close(self) -> None:
        return None


@dataclass(slots=True)
class _Whole:
    """A scan that is compared at once, when its last chunk has been read."""

    cause: Cause
    began: int
    chunks: Iterator[tuple[U8, U8]]
    read: list[tuple[U8, U8]] = field(default_factory=list)
    ended: bool = False


class ScannedSource:
    """A ring's source that also reads the map: what it held at the start, and again after losses.

    ``comparison`` knows what the stream says; ``publishes_all``: every entry is published at the
    start all the same. ``rejoins``: the map lived on while nobody looked, so what it lacks at the
    start was deleted. A whole map that is compared is held in memory until it has been.
    """

    def __init__(
        self,
        inner: ChangeSource,
        target: Scannable,
        *,
        ready: Callable[[], bool],
        comparison: Comparison,
        publishes_all: bool = False,
        rejoins: bool = False,
    ) -> None:
        self._inner = inner
        self._map = target
        self._ready = ready
        self._comparison = comparison
        self._publishes_all = publishes_all
        self._rejoins = rejoins
        self._chunks: Iterator[tuple[U8, U8]] | None = None
        self._whole: _Whole | None = None
        self._started = False
        self._wanted = False
        self._failure: BridgeError | None = None
        self.repairs = 0  # finished
        self.repair_seconds = 0.0  # of the last one
        self.deferred = 0  # keys that the last one had to leave out, as the bridge wrote them

    def fileno(self) -> int | None:
        return self._inner.fileno()

    @property
    def interval(self) -> float:
        busy = not self._started or self._whole is not None
        return SCAN_POLL_SECONDS if busy else min(self._inner.interval, REPAIR_POLL_SECONDS)

    @property
    def started(self) -> bool:
        """Whether the scan at the start is at its end."""
        return self._started

    @property
    def repairing(self) -> bool:
        """Whether a repair was asked for that is not finished."""
        return self._wanted or (self._whole is not None and self._whole.cause is Cause.REPAIR)

    def repair(self) -> None:
        """Something was lost: compare the whole map with the stream, soon. From any thread."""
        self._wanted = True

    def drain(self) -> list[DeltaBatch]:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if self._whole is not None and self._whole.ended:
            return self._compare(self._whole)
        asked = _ktime_ns()
        batches = self._inner.drain()
        if not batches:
            self._comparison.drained(asked)
        if (not self._started or self._wanted or self._whole is not None) and self._ready():
            try:
                batches.extend(self._step())
            except BridgeError as error:
                # What was drained must not go down with it: told next time, then begun anew.
                self._wanted |= self.repairing
                self._chunks, self._whole, self._failure = None, None, error
        return batches

    def losses(self) -> Losses:
        return self._inner.losses()

    def close(self) -> None:
        self._inner.close()

    def _step(self) -> list[DeltaBatch]:
        if self._whole is None and not self._started and not self._rejoins:
            return self._next_chunk()
        if self._whole is None:
            cause = Cause.REPAIR if self._started else Cause.SCAN
            self._wanted &= not self._started
            self._whole = _Whole(cause, _ktime_ns(), self._map.scan())
            self._comparison.begin_scan(self._whole.began)
        chunk = next(self._whole.chunks, None)
        if chunk is not None:
            self._whole.read.append(chunk)
        else:
            self._whole.ended = True
        return []

    def _next_chunk(self) -> list[DeltaBatch]:
        if self._chunks is None:
            self._chunks = self._map.scan()
        began = _ktime_ns()
        if not self._publishes_all:
            self._comparison.begin_scan(began)
        chunk = next(self._chunks, None)
        if chunk is None:
            self._started, self._chunks = True, None
            return []
        keys, values = chunk
        ended = _ktime_ns()
        if self._publishes_all:
            return [
                DeltaBatch.of_entries(Op.UPDATE, keys, values, ended, began=began, cause=Cause.SCAN)
            ]
        found = self._comparison.compare(keys, values, complete=False)
        return _as_batches(found, self._map.info, began, ended, Cause.SCAN)

    def _compare(self, whole: _Whole) -> list[DeltaBatch]:
        """Compare before the next records are drained.

        Those drained so far have all been captured, and keys that they changed since the scan began
        are left out. A record that was drained and not captured yet would be taken for older
        than what the scan had read before it happened.
        """
        self._whole, self._started = None, True
        found = compare_whole(whole.read, self._map.info, self._comparison)
        ended = _ktime_ns()
        if whole.cause is Cause.REPAIR:
            self.repairs += 1
            self.repair_seconds = (ended - whole.began) / 1e9
            self.deferred = found.deferred
        return _as_batches(found, self._map.info, whole.began, ended, whole.cause)


def compare_whole(
    chunks: Sequence[tuple[U8, U8]], info: MapInfo, comparison: Comparison
) -> Differences:
    """Compare the chunks of a whole scan, which ``comparison`` has been told of."""
    keys = [np.zeros((0, info.key_size), np.uint8), *(k for k, _ in chunks)]
    values = [np.zeros((0, info.value_size), np.uint8), *(v for _, v in chunks)]
    return comparison.compare(np.concatenate(keys), np.concatenate(values), complete=True)


def _as_batches(
    found: Differences, info: MapInfo, began: int, ended: int, cause: Cause
) -> list[DeltaBatch]:
    nothing = np.zeros((len(found.deleted_keys), info.value_size), np.uint8)
    sides = (
        (Op.DELETE, found.deleted_keys, nothing),
        (Op.UPDATE, found.updated_keys, found.updated_values),
    )
    return [
        DeltaBatch.of_entries(op, keys, values, ended, began=began, cause=cause)
        for op, keys, values in sides
        if len(keys)
    ]


def _ktime_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)
