"""Reading a map's contents: behind the probes at the start, after losses and at an interval, or
without any probes again and again.

Order matters more than speed here. An operation is recorded after it has happened, so whatever a
scan saw of an operation is confirmed or overtaken by that operation's own record, provided that
what the scan found is handed on *before* the records that are drained after it.

No step takes long, however large the map: a chunk is read or a slice compared, then the ring is
drained. What changed since the scan began is left out of the comparison.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from bridge.capture.reading import Scannable, as_changes, ktime_ns, read_again
from bridge.capture.source import ChangeSource, Losses
from bridge.core.fingerprints import Differences
from bridge.core.scanrows import ScanChunk, ScanSlice
from bridge.errors import BridgeError
from bridge.model import U8, Cause, DeltaBatch

SCAN_POLL_SECONDS = 0.02
SLICE_POLL_SECONDS = 0.001  # while slices wait to be compared, or keys to be read again
REREAD_KEYS_MAX = 256  # at one drain
REPAIR_POLL_SECONDS = 0.25  # until a repair that was asked for begins


Share = Callable[[list[tuple[U8, U8]]], None]


class Comparison(Protocol):
    """The map's replica under its lock."""

    def drained(self, now: int) -> None: ...
    def settled(self, now: int) -> None: ...
    def reread(self, keys_max: int) -> U8 | None: ...
    def begin_scan(self, now: int) -> None: ...
    def sift(self, keys: U8, values: U8) -> ScanChunk: ...
    def cut(self, chunks: list[ScanChunk], value_size: int) -> Iterator[ScanSlice]: ...
    def compare(self, piece: ScanSlice) -> Differences: ...
    def end_scan(self) -> None: ...


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
        self.found = 0
        self._share: Share | None = None

    def share(self, take: Share) -> None:
        """Give the contents that the next sweep reads to ``take`` too. From any thread."""
        self._share = take

    def fileno(self) -> int | None:
        return None

    def drain(self) -> list[DeltaBatch]:
        # Asked only when everything found before has been taken.
        self._comparison.drained(ktime_ns())
        if not self._ready():
            return []
        info, comparison = self._map.info, self._comparison
        share, self._share = self._share, None
        began = ktime_ns()
        comparison.begin_scan(began)
        try:
            chunks: list[tuple[U8, U8]] = []
            sifted = []
            for keys, values in self._map.scan():
                sifted.append(comparison.sift(keys, values))
                if share is not None:
                    chunks.append((keys, values))
            ended = ktime_ns()
            found = [comparison.compare(one) for one in comparison.cut(sifted, info.value_size)]
        finally:
            comparison.end_scan()
        if share is not None:
            share(chunks)
        cause = Cause.CHANGE if self.sweeps else Cause.SCAN
        self.sweeps += 1
        self.sweep_seconds = (ktime_ns() - began) / 1e9
        self.deferred += sum(one.deferred for one in found)
        batches = [batch for one in found for batch in as_changes(one, info, began, ended, cause)]
        self.found += sum(len(batch) for batch in batches)
        return batches

    def losses(self) -> Losses:
        return Losses()

    def close(self) -> None:
        return None


@dataclass(slots=True)
class _Whole:
    """A scan of the whole map: first all chunks are read, then all slices compared."""

    cause: Cause
    began: int
    chunks: Iterator[tuple[U8, U8]]
    sifted: list[ScanChunk] = field(default_factory=list)
    ended: int = 0  # when the last chunk had been read
    slices: Iterator[ScanSlice] | None = None
    deferred: int = 0


class ScannedSource:
    """A ring's source that also reads the map: what it held at the start, and again after losses.

    ``comparison`` knows what the stream says: what differs is published, and what the map lacks was
    deleted. ``sweep_seconds``: the map is also compared at that interval, for writes that nobody
    reports. ``settle_seconds``: an operation that is older than the ring has ended so long after.
    What the stream does not know is held in memory until it is compared: at the start, all of it.
    """

    def __init__(
        self,
        inner: ChangeSource,
        target: Scannable,
        *,
        ready: Callable[[], bool],
        comparison: Comparison,
        sweep_seconds: float | None = None,
        settle_seconds: float = 0.0,
    ) -> None:
        self._inner = inner
        self._map = target
        self._ready = ready
        self._comparison = comparison
        self._sweep_seconds = sweep_seconds
        self._settles_at = ktime_ns() + int(settle_seconds * 1e9)
        self._settled = not settle_seconds
        self._whole: _Whole | None = None
        self._started = False
        self._wanted = False
        self._swept_at = 0  # end of the last whole scan
        self._level = 0  # everything that ended until then has come out of the ring
        self._rings_turn = False
        self._rereading = False
        self._failure: BridgeError | None = None
        self.repairs = 0  # finished
        self.repair_seconds = 0.0  # of the last one
        self.deferred = 0  # keys that the last one had to leave out, as the bridge wrote them
        self.sweeps = 0
        self.sweep_seconds = 0.0  # of the last one
        self.found = 0  # changes that sweeps found

    def fileno(self) -> int | None:
        return self._inner.fileno()

    @property
    def interval(self) -> float:
        if self._rereading or (self._whole is not None and self._whole.slices is not None):
            return SLICE_POLL_SECONDS
        if not self._started or self._whole is not None:
            return SCAN_POLL_SECONDS
        return min(self._inner.interval, REPAIR_POLL_SECONDS, self._sweep_seconds or math.inf)

    @property
    def started(self) -> bool:
        """Whether the scan at the start is at its end."""
        return self._started

    @property
    def settled(self) -> bool:
        """Whether operations older than the ring have ended: what comes now is seen in order."""
        return self._settled

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
        whole = self._whole
        if whole is not None and whole.slices is not None and not self._rings_turn:
            self._rings_turn = True
            return self._compare(whole, whole.slices)
        self._rings_turn = False
        asked = ktime_ns()
        batches = self._inner.drain()
        if batches:
            self._level = max(self._level, int(batches[-1].left[-1]))
        else:
            self._level = asked
            self._comparison.drained(asked)
        if not self._settled:
            if asked < self._settles_at:
                return batches
            self._settled = True
            self._comparison.settled(asked)
        try:
            batches.extend(self._reread())
            if self._due(asked) and self._ready():
                self._step()
        except BridgeError as error:
            # What was drained must not go down with it: told next time, then begun anew.
            self._wanted |= self.repairing
            self._swept_at = asked
            self._failure = error
            self._give_up()
        return batches

    def losses(self) -> Losses:
        return self._inner.losses()

    def close(self) -> None:
        self._inner.close()

    def _due(self, now: int) -> bool:
        if not self._started or self._wanted or self._whole is not None:
            return True
        seconds = self._sweep_seconds
        return seconds is not None and now - self._swept_at >= seconds * 1e9

    def _reread(self) -> list[DeltaBatch]:
        """Keys whose order is open are read, where nobody else's value can stand in the map."""
        keys = self._comparison.reread(REREAD_KEYS_MAX)
        self._rereading = keys is not None and len(keys) == REREAD_KEYS_MAX
        return [] if keys is None else read_again(self._map, keys)

    def _step(self) -> None:
        if self._whole is None:
            cause = Cause.CHANGE
            if not self._started or self._wanted:
                cause = Cause.REPAIR if self._started else Cause.SCAN
            self._wanted &= not self._started
            self._whole = _Whole(cause, ktime_ns(), self._map.scan())
            self._comparison.begin_scan(self._whole.began)
        whole = self._whole
        if not whole.ended:
            chunk = next(whole.chunks, None)
            if chunk is not None:
                whole.sifted.append(self._comparison.sift(*chunk))
            else:
                whole.ended = ktime_ns()
        elif whole.slices is None and self._level >= whole.ended:
            # Changes that the scan has seen came out of the ring, and are left out.
            whole.slices = self._comparison.cut(whole.sifted, self._map.info.value_size)

    def _compare(self, whole: _Whole, slices: Iterator[ScanSlice]) -> list[DeltaBatch]:
        """Compare a slice before the next records are drained.

        Those drained so far have all been captured, and keys that they changed since the scan began
        are left out. A record that was drained and not captured yet would be taken for older
        than what the scan had read before it happened.
        """
        piece = next(slices, None)
        if piece is None:
            self._finish(whole)
            return []
        found = self._comparison.compare(piece)
        whole.deferred += found.deferred
        batches = as_changes(found, self._map.info, whole.began, whole.ended, whole.cause)
        if whole.cause is Cause.CHANGE:
            self.found += sum(len(batch) for batch in batches)
        return batches

    def _finish(self, whole: _Whole) -> None:
        self._give_up()
        self._started, self._swept_at = True, ktime_ns()
        seconds = (self._swept_at - whole.began) / 1e9
        if whole.cause is Cause.REPAIR:
            self.repairs += 1
            self.repair_seconds, self.deferred = seconds, whole.deferred
        elif whole.cause is Cause.CHANGE:
            self.sweeps += 1
            self.sweep_seconds = seconds

    def _give_up(self) -> None:
        if self._whole is not None:
            self._comparison.end_scan()
            self._whole = None
