"""Digests of a map by buckets of keys: whether replicas are equal, and where they are not.

Invariant: the digest of a bucket depends on the set of its entries only, not on their order, on
the machine or on the process; equal sets have equal digests, and sets that differ have different
ones but for a chance of 2**-64. The seed comes from whoever asks, anew each time, so that nobody
can choose entries that cancel each other out.

While changes go on, maps that replicate well differ at every moment. So a difference counts as
drift only when it stays: a key that the same maps hold with the same, different values in reading
after reading, though all of them have taken in what the stream held before the last one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from bridge.core.keys import hash_rows
from bridge.model import U8, U64, Flags

BUCKETS_MAX = 4_096
_ORDER = np.uint64(0x9E3779B97F4A7C15)


@dataclass(slots=True)
class Digest:
    """``sums u64[buckets]``, modulo 2**64, and ``counts u64[buckets]``, filled chunk by chunk."""

    seed: int
    buckets: int
    sums: U64 = field(init=False)
    counts: U64 = field(init=False)

    def __post_init__(self) -> None:
        if not 1 <= self.buckets <= BUCKETS_MAX:
            raise ValueError(f"buckets: need 1 to {BUCKETS_MAX} (got {self.buckets})")
        self.sums = np.zeros(self.buckets, np.uint64)
        self.counts = np.zeros(self.buckets, np.uint64)

    def add(self, keys: U8, values: U8) -> None:
        """Take entries in: ``u8[n, key_size]``, ``u8[n, value_size]``, no key twice in all."""
        if not len(keys):
            return
        key_hashes = hash_rows(keys, self.seed)
        at = _bucket_of(key_hashes, self.buckets)
        both = np.stack([key_hashes * _ORDER, hash_rows(values, self.seed)], axis=1)
        np.add.at(self.sums, at, hash_rows(both.view(np.uint8), self.seed))
        np.add.at(self.counts, at, np.uint64(1))


def buckets_of(keys: U8, seed: int, buckets: int) -> npt.NDArray[np.intp]:
    """The bucket of each key."""
    return _bucket_of(hash_rows(keys, seed), buckets)


def differing(digests: Sequence[Digest]) -> Flags:
    """``bool[buckets]``: where not all of them agree."""
    first = digests[0]
    found = np.zeros(first.buckets, np.bool_)
    for other in digests[1:]:
        found |= (other.sums != first.sums) | (other.counts != first.counts)
    return found


Entries = Mapping[bytes, bytes]


@dataclass(frozen=True, slots=True)
class Drift:
    """A key that maps hold differently, and go on to. ``None``: the map lacks it."""

    key: bytes
    values: tuple[bytes | None, ...]


def lasting(readings: Sequence[Sequence[Entries]], *, evicts: bool = False) -> list[Drift]:
    """Keys that differ between maps, the same way in every reading.

    readings: one after the other, each with the entries of every map, in one order.
    evicts: maps drop entries by themselves, so one that lacks a key says nothing.
    """
    last = readings[-1]
    keys = sorted(set().union(*last))
    found = []
    for key in keys:
        values = tuple(entries.get(key) for entries in last)
        if len({*values} - ({None} if evicts else set())) > 1 and all(
            tuple(entries.get(key) for entries in reading) == values for reading in readings
        ):
            found.append(Drift(key, values))
    return found


def most_held(values: Sequence[bytes | None], *, evicts: bool = False) -> int:
    """Which map holds what most maps hold; the first of them. ``evicts`` as in ``lasting``."""
    able = [i for i, value in enumerate(values) if value is not None or not evicts]
    return max(able, key=lambda i: (values.count(values[i]), -i))


def _bucket_of(key_hashes: U64, buckets: int) -> npt.NDArray[np.intp]:
    return (key_hashes % np.uint64(buckets)).astype(np.intp)
