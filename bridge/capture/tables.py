"""What the capture programs and the bridge tell each other through maps.

Twins of the structs in ``bpf/capture.bpf.c``.
"""

from __future__ import annotations

import mmap
import os
import struct
from dataclasses import dataclass

import numpy as np

from bridge.capture.functions import PROBED_TYPES
from bridge.capture.loader import ProbeObject
from bridge.capture.record import HEADER_SIZE, SCRATCH_SIZE, Layout, pad8
from bridge.capture.source import Losses
from bridge.errors import BridgeError
from bridge.kernel.maps import KernelMap, map_info
from bridge.kernel.maptypes import PER_CPU_TYPES, type_name
from bridge.model import KEY_SIZE_MAX, U64, VALUE_SIZE_MAX, MapInfo

SLOTS_MAX = 1024  # maps watched at once, twin of MB_SLOTS
SIEVE_SIZE = 1024
WATCH = struct.Struct("=6I")  # struct watch
_KEYS_ONLY = 1  # enum watch_flag
LOSS_KINDS = ("ring_full", "unpaired", "fault", "stash_full")  # enum loss
_LOSSES_BYTES = 64  # struct losses
_BATCH_KEYS_BYTES_MAX = 8192  # KEYS_MAX


class UnwatchableError(BridgeError):
    """A map of a kind whose changes the probes cannot report."""


@dataclass(frozen=True, slots=True)
class Watch:
    """What the programs know of a watched map."""

    slot: int
    layout: Layout

    @property
    def chunk_deletes(self) -> int:
        """Entries of a batch in one record when it carries keys only."""
        return max(1, _BATCH_KEYS_BYTES_MAX // self.layout.key_size)

    @property
    def chunk_updates(self) -> int:
        """Entries of a batch in one record when it carries values too."""
        if not self.layout.carries_value:
            return self.chunk_deletes
        room = SCRATCH_SIZE - HEADER_SIZE - 2 * 7  # either column is padded
        width = self.layout.key_size + self.layout.value_size
        return max(1, min(self.chunk_deletes, room // width))

    def pack(self) -> bytes:
        return WATCH.pack(
            self.slot,
            self.layout.key_size,
            self.layout.value_size,
            self.chunk_updates,
            self.chunk_deletes,
            0 if self.layout.carries_value else _KEYS_ONLY,
        )


def layout_of(info: MapInfo) -> Layout:
    """The records of a map."""
    return Layout(info.key_size, info.value_size, keys_only=info.type in PER_CPU_TYPES)


class Sieve:
    """How many watched maps have an id with the same low bits; see ``sieve`` in the programs."""

    def __init__(self, table: KernelMap) -> None:
        self._table = table

    def add(self, map_id: int, by: int) -> None:
        """Count a map in (1) before it is watched, out (-1) after. Under the owner's lock."""
        place = (map_id % SIEVE_SIZE).to_bytes(4, "little")
        count = int.from_bytes(self._table.lookup(place) or bytes(4), "little")
        self._table.update(place, (count + by).to_bytes(4, "little"))

    def close(self) -> None:
        self._table.close()


def check_watchable(info: MapInfo) -> None:
    """Raises ``UnwatchableError`` for a map that the probes do not cover."""
    subject = f"map {info.name or '(no name)'} (id {info.id})"
    if info.type not in PROBED_TYPES:
        raise UnwatchableError(
            f"{subject}: no probes for this type of map (got {type_name(info.type)})",
            hint=f"the probes cover {', '.join(type_name(one) for one in PROBED_TYPES)}",
        )
    if info.key_size > KEY_SIZE_MAX:
        raise UnwatchableError(
            f"{subject}: key too large: at most {KEY_SIZE_MAX} bytes (got {info.key_size})",
            hint="leave this map out",
        )
    if info.value_size > VALUE_SIZE_MAX:
        raise UnwatchableError(
            f"{subject}: value too large: at most {VALUE_SIZE_MAX} bytes (got {info.value_size})",
            hint="leave this map out",
        )


class LossTable:
    """The counters that the programs keep, read out of their own memory.

    A lookup by bpf(2) instead would blind the kprobes of this CPU while it lasts.
    """

    def __init__(self, fd: int, slots: int) -> None:
        """``fd``: the array ``losses``, of ``slots`` + 1 entries; the last one is of no map."""
        size = _LOSSES_BYTES * (slots + 1)
        self._memory = mmap.mmap(fd, -(-size // mmap.PAGESIZE) * mmap.PAGESIZE, prot=mmap.PROT_READ)
        counts = np.frombuffer(self._memory, np.uint64, size // 8)
        self._counts: U64 | None = counts.reshape(slots + 1, _LOSSES_BYTES // 8)
        self._all_maps = slots

    def read(self, slot: int) -> U64:
        """Counts by ``LOSS_KINDS`` of a slot, with those that are of no map added."""
        assert self._counts is not None, "closed already"
        kinds = len(LOSS_KINDS)
        total: U64 = self._counts[slot, :kinds] + self._counts[self._all_maps, :kinds]
        return total

    def close(self) -> None:
        self._counts = None
        self._memory.close()


def losses_since(base: U64, now: U64, missed: int) -> Losses:
    """What was lost since ``base``; ``missed``: operations that the kernel kept from the probes."""
    counts = dict(zip(LOSS_KINDS, (now - base).tolist(), strict=True))
    counts["unpaired"] += missed
    return Losses(**counts)


assert pad8(_LOSSES_BYTES) == _LOSSES_BYTES


class ProgramTables:
    """The programs' maps, opened."""

    def __init__(self, programs: ProbeObject, slots: int) -> None:
        self.watched = open_table(programs, "watched")
        self.sieve = Sieve(open_table(programs, "sieve"))
        self.rings = open_table(programs, "rings")
        self.own_threads = open_table(programs, "own_threads")
        self.losses = LossTable(programs.map_fd("losses"), slots)

    def close(self) -> None:
        for table in (self.watched, self.rings, self.own_threads):
            table.close()
        self.sieve.close()
        self.losses.close()


def open_table(programs: ProbeObject, name: str) -> KernelMap:
    """One of the programs' maps, by a descriptor of its own."""
    fd = programs.map_fd(name)
    return KernelMap(os.dup(fd), map_info(fd, f"map {name}"))
