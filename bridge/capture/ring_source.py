"""The changes of one map out of one ring buffer, filled by probes or by an author's program."""

from __future__ import annotations

from collections.abc import Callable

from bridge.capture.decoding import Decoder, DecodeStatistics
from bridge.capture.record import Layout, Lookup
from bridge.capture.ring import BYTES_MAX, RingReader, RingStatistics
from bridge.capture.source import Losses
from bridge.model import DeltaBatch

INTERVAL_SECONDS = 1.0  # a look now and then, should a wake-up ever get lost


class RingSource:
    """A ``ChangeSource`` over a ring buffer that holds records of one map.

    ``ring_fd`` is duplicated, ``ring_size`` is in bytes. ``lookup`` gives the value of a key or
    ``None``; it is asked only for records without values. ``losses`` gives what the writing side
    counted; records that tell of a rescan, and those that could not be decoded, are added to it
    here. ``on_close`` runs after the ring is unmapped.

    ``skip_backlog`` is for a ring that was there before the bridge: what it holds happened before
    the map is scanned, and newer changes of the same keys may have found the ring full.
    """

    interval = INTERVAL_SECONDS

    def __init__(
        self,
        ring_fd: int,
        ring_size: int,
        layout: Layout,
        *,
        lookup: Lookup,
        losses: Callable[[], Losses],
        bytes_max: int = BYTES_MAX,
        skip_backlog: bool = False,
        on_close: Callable[[], None] | None = None,
    ) -> None:
        self._reader = RingReader(ring_fd, ring_size)
        self.skipped = self._reader.skip() if skip_backlog else 0
        self._decoder = Decoder(layout, lookup)
        self._losses = losses
        self._bytes_max = bytes_max
        self._on_close = on_close

    def fileno(self) -> int:
        return self._reader.fileno()

    def drain(self) -> list[DeltaBatch]:
        """At most one batch, from about ``bytes_max`` bytes of the ring."""
        batch = self._decoder.decode(self._reader.drain(self._bytes_max))
        return [] if batch is None else [batch]

    def losses(self) -> Losses:
        ring = self._reader.statistics()
        return self._decoder.losses(self._losses(), ring.corrupt + ring.disturbed)

    def statistics(self) -> DecodeStatistics:
        return self._decoder.statistics()

    def ring_statistics(self) -> RingStatistics:
        return self._reader.statistics()

    def waiting_bytes(self) -> int:
        """Bytes in the ring that were not drained yet."""
        return self._reader.waiting_bytes()

    def close(self) -> None:
        self._reader.close()
        if self._on_close is not None:
            self._on_close()
            self._on_close = None
