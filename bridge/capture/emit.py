"""Changes that an author's own BPF program reports with ``bpf/mapbridge.h``."""

from __future__ import annotations

import contextlib
import struct

from bridge.capture.ring import BYTES_MAX
from bridge.capture.ring_source import RingSource
from bridge.capture.source import Losses
from bridge.capture.tables import layout_of
from bridge.errors import BridgeError, Exit
from bridge.kernel.maps import KernelMap, MapType, open_map, type_name
from bridge.model import MapSelector

_COUNT = struct.Struct("=Q")
_FIRST = struct.pack("=I", 0)


class EmitError(BridgeError):
    """A map that was named as ring or as loss counter is of another kind."""

    exit_code = Exit.CONFIG


class EmitSource(RingSource):
    """The changes of ``target`` as its program emits them into a ring of its own.

    ``losses`` names the map that ``MAPBRIDGE_LOSSES`` declared. Without it a full ring goes
    unnoticed, which only a map that is also swept can bear. ``target`` stays the caller's. Raises
    ``EmitError``, and what opening a map raises.
    """

    def __init__(
        self,
        target: KernelMap,
        ring: MapSelector,
        losses: MapSelector | None = None,
        *,
        bytes_max: int = BYTES_MAX,
    ) -> None:
        self._counter = open_counter(losses) if losses is not None else None
        self._base = 0
        self._last = 0  # the count at the close
        try:
            self._base = self._ring_full()
            with open_ring(ring) as opened:
                super().__init__(
                    opened.fileno(),
                    opened.info.max_entries,
                    layout_of(target.info),
                    lookup=target.lookup,
                    losses=lambda: Losses(ring_full=self._ring_full()),
                    bytes_max=bytes_max,
                    skip_backlog=True,
                    on_close=self._close_counter,
                )
        except BaseException:
            self._close_counter()
            raise

    def _ring_full(self) -> int:
        """Changes that found the ring full since the source was opened."""
        if self._counter is None:
            return self._last
        value = self._counter.lookup(_FIRST)
        assert value is not None, "an array has its first element"
        count: int = _COUNT.unpack(value)[0]
        return count - self._base

    def _close_counter(self) -> None:
        if self._counter is not None:
            with contextlib.suppress(BridgeError):
                self._last = self._ring_full()
            self._counter.close()
            self._counter = None


def open_ring(selector: MapSelector) -> KernelMap:
    """The ring of an emitting program. Raises ``EmitError`` when it is another kind of map."""
    opened = open_map(selector)
    if opened.info.type != MapType.RINGBUF:
        opened.close()
        raise EmitError(
            f"emit ring {selector}: not a ring buffer (got {type_name(opened.info.type)})",
            hint="name the map that MAPBRIDGE_RING declares in the program",
        )
    return opened


def open_counter(selector: MapSelector) -> KernelMap:
    """Where an emitting program counts its losses. Raises ``EmitError`` for another kind of map."""
    opened = open_map(selector)
    info = opened.info
    if info.type != MapType.ARRAY or info.key_size != 4 or info.value_size != _COUNT.size:
        opened.close()
        raise EmitError(
            f"emit losses {selector}: not an array of 8-byte counters "
            f"(got {type_name(info.type)}, value {info.value_size})",
            hint="name the map that MAPBRIDGE_LOSSES declares in the program",
        )
    return opened
