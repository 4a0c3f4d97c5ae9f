"""Reading a map's contents: once at the start behind the probes, or again and again as a sweep.

Order matters more than speed here. An operation is recorded after it has happened, so whatever a
scan saw of an operation is confirmed or overtaken by that operation's own record, provided that a
chunk of the scan is handed on *before* the records that are drained after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import numpy as np

from bridge.capture.source import ChangeSource, Losses
from bridge.core.fingerprints import Differences
from bridge.errors import BridgeError
from bridge.model import U8, Cause, DeltaBatch, MapInfo, Op

SCAN_POLL_SECONDS = 0.02


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

    def fileno(self) -> int | None:
        return None

    def drain(self) -> list[DeltaBatch]:
        # Asked only when everything found before has been taken.
        self._comparison.drained(_ktime_ns())
        if not self._ready():
            return []
        info = self._map.info
        began = _ktime_ns()
        self._comparison.begin_scan(began)
        chunks = list(self._map.scan())
        ended = _ktime_ns()
        found = compare_whole(chunks, info, self._comparison)
        cause = Cause.CHANGE if self.sweeps else Cause.SCAN
        self.sweeps += 1
        self.sweep_seconds = (_ktime_ns() - began) / 1e9
        self.deferred += found.deferred
        return _as_batches(found, info, began, ended, cause)

    def losses(self) -> Losses:
        return Losses()

    def close(self) -> None:
        return None


class StartupScan:
    """A ring's source that also publishes, chunk by chunk, what the map held at the start.

    ``comparison`` leaves out what the stream says already; ``None`` publishes every entry.
    ``complete``: the map lived on while nobody looked, so what it lacks was deleted. The whole is
    then compared at once, when its last chunk has been read.
    """

    def __init__(
        self,
        inner: ChangeSource,
        target: Scannable,
        *,
        ready: Callable[[], bool],
        comparison: Comparison | None,
        finished: Callable[[], None],
        complete: bool = False,
    ) -> None:
        self._inner = inner
        self._complete = complete
        self._read: list[tuple[U8, U8]] = []
        self._whole: Comparison | None = None  # what to compare the whole with, once it is read
        self._began = 0
        self._map = target
        self._ready = ready
        self._comparison = comparison
        self._finished = finished
        self._chunks: Iterator[tuple[U8, U8]] | None = None
        self._done = False
        self._failure: BridgeError | None = None

    def fileno(self) -> int | None:
        return self._inner.fileno()

    @property
    def interval(self) -> float:
        return self._inner.interval if self._done else SCAN_POLL_SECONDS

    def drain(self) -> list[DeltaBatch]:
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure
        if self._whole is not None:
            return self._compare_whole(self._whole)
        asked = _ktime_ns()
        batches = self._inner.drain()
        if not batches and self._comparison is not None:
            self._comparison.drained(asked)
        if not self._done and self._ready():
            try:
                batches.extend(self._next_chunk())
            except BridgeError as error:
                # What was drained must not go down with it: told next time, then begun anew.
                self._chunks, self._failure = None, error
        return batches

    def _next_chunk(self) -> list[DeltaBatch]:
        if self._complete and self._comparison is not None:
            return self._next_of_whole(self._comparison)
        if self._chunks is None:
            self._chunks = self._map.scan()
        began = _ktime_ns()
        if self._comparison is not None:
            self._comparison.begin_scan(began)
        chunk = next(self._chunks, None)
        if chunk is None:
            self._done, self._chunks = True, None
            self._finished()
            return []
        keys, values = chunk
        ended = _ktime_ns()
        if self._comparison is None:
            return [
                DeltaBatch.of_entries(Op.UPDATE, keys, values, ended, began=began, cause=Cause.SCAN)
            ]
        found = self._comparison.compare(keys, values, complete=False)
        return _as_batches(found, self._map.info, began, ended, Cause.SCAN)

    def _next_of_whole(self, comparison: Comparison) -> list[DeltaBatch]:
        if self._chunks is None:
            self._chunks, self._read, self._began = self._map.scan(), [], _ktime_ns()
            comparison.begin_scan(self._began)
        chunk = next(self._chunks, None)
        if chunk is not None:
            self._read.append(chunk)
            return []
        self._chunks, self._whole = None, comparison
        return []

    def _compare_whole(self, comparison: Comparison) -> list[DeltaBatch]:
        """Compare before the next records are drained.

        Those drained so far have all been captured, and keys that they changed since the scan began
        are left out. A record that was drained and not captured yet would be taken for older
        than what the scan had read before it happened.
        """
        found = compare_whole(self._read, self._map.info, comparison)
        self._done, self._whole, self._read = True, None, []
        self._finished()
        return _as_batches(found, self._map.info, self._began, _ktime_ns(), Cause.SCAN)

    def losses(self) -> Losses:
        return self._inner.losses()

    def close(self) -> None:
        self._inner.close()


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
