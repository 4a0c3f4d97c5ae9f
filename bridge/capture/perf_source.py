"""The changes of one map out of perf buffers, one for each CPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from bridge.capture.decoding import Decoder, DecodeStatistics
from bridge.capture.merging import EVERYTHING, HOLD_NANOSECONDS, Stream, merged
from bridge.capture.perf_buffer import PerfReader, PerfStatistics
from bridge.capture.record import Layout, Lookup
from bridge.capture.ring import BYTES_MAX
from bridge.capture.source import Losses
from bridge.kernel.clock import ktime_ns
from bridge.model import DeltaBatch

PASSES_MAX = 4  # over all buffers in one drain; the order gives way to the bound
POLL_SECONDS = 0.001  # until the next look, doubled with each one that found nothing
POLL_SECONDS_MAX = 0.02  # and so the latency of a change that comes after silence


class PerfSource:
    """A ``ChangeSource`` over the perf buffers that hold the records of one map.

    ``fd`` is reported readable by epoll when a good deal waits; for less, the source wants to be
    asked at an interval that is short while there are changes. ``losses`` gives
    what the writing side counted: the kernel's own records of losses come too late to be of use.
    ``on_close`` runs after the readers are closed. ``clock`` is that of the records, in
    nanoseconds; ``pause`` waits for seconds.

    A drain never answers that there is nothing while it holds something back: it waits as long as
    the bound of ``bridge.capture.merging`` says.
    """

    def __init__(
        self,
        readers: Sequence[PerfReader],
        fd: int,
        layout: Layout,
        *,
        lookup: Lookup,
        losses: Callable[[], Losses],
        bytes_max: int = BYTES_MAX,
        on_close: Callable[[], None] | None = None,
        clock: Callable[[], int] = ktime_ns,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._readers = tuple(readers)
        self._streams = tuple(Stream() for _ in readers)
        self._fd = fd
        self._decoder = Decoder(layout, lookup)
        self._losses = losses
        self._share = max(1, bytes_max // max(1, len(readers)))  # of one CPU
        self._on_close = on_close
        self._clock = clock
        self._pause = pause
        self._poll_seconds = POLL_SECONDS

    def fileno(self) -> int:
        return self._fd

    @property
    def interval(self) -> float:
        return HOLD_NANOSECONDS / 1e9 if self.held_rows() else self._poll_seconds

    def drain(self) -> list[DeltaBatch]:
        """At most one batch, from about twice ``bytes_max`` bytes of the buffers."""
        batch = self._next()
        if batch is None:
            self._poll_seconds = min(2 * self._poll_seconds, POLL_SECONDS_MAX)
            return []
        self._poll_seconds = POLL_SECONDS
        return [batch]

    def _next(self) -> DeltaBatch | None:
        for _ in range(PASSES_MAX):
            horizon = self._read()
            batch = merged(self._streams, horizon)
            if batch is not None or not self.held_rows():
                return batch
            self._pause(HOLD_NANOSECONDS / 1e9)
        return merged(self._streams, EVERYTHING)

    def losses(self) -> Losses:
        return self._decoder.losses(self._losses(), self.ring_statistics().corrupt)

    def statistics(self) -> DecodeStatistics:
        return self._decoder.statistics()

    def ring_statistics(self) -> PerfStatistics:
        return sum((reader.statistics() for reader in self._readers), PerfStatistics())

    def waiting_bytes(self) -> int:
        """Bytes in the buffers that were not drained yet."""
        return sum(reader.waiting_bytes() for reader in self._readers)

    def held_rows(self) -> int:
        """Changes that were read and are held back."""
        return sum(stream.rows for stream in self._streams)

    def close(self) -> None:
        for reader in self._readers:
            reader.close()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None

    def _read(self) -> int:
        """Read from every CPU; answers the time up to which the order is settled.

        The clock is read before any buffer is looked at: whatever becomes visible on a CPU after
        its buffer was read to the end became so later than that.
        """
        horizon = max(0, self._clock() - HOLD_NANOSECONDS)
        for reader, stream in zip(self._readers, self._streams, strict=True):
            # A CPU that is ahead of the others waits in its own buffer, so that memory has a bound.
            if stream.nbytes >= self._share:
                horizon = min(horizon, stream.newest)
                continue
            batch = self._decoder.decode(reader.drain(self._share))
            if batch is not None:
                stream.add(batch)
            if reader.left_some:
                horizon = min(horizon, stream.newest)
        return horizon
