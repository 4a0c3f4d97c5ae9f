"""What a scan has read, as columns sorted by hash: chunks on their way in, slices on their way out.

Invariant: every row of the chunks is in exactly one slice, the one whose range its key's hash lies
in, and the ranges of the slices cover all hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bridge.model import U8, U64, Rows

HASH_BITS = 64
_SLICE_ROWS = 16_384  # of a scan, compared at one call
_SLICE_BITS_MAX = 16
_JOINED_ROWS = 131_072  # in one piece: each slice looks into every piece


@dataclass(frozen=True, slots=True)
class ScanChunk:
    """Scanned entries sorted by the hash of their key, made with one seed."""

    seed: int
    hashes: U64
    keys: U8
    values: U8
    value_hashes: U64

    def __len__(self) -> int:
        return len(self.hashes)

    def take(self, rows: slice | Rows) -> ScanChunk:
        if isinstance(rows, slice):
            return ScanChunk(
                self.seed,
                self.hashes[rows],
                self.keys[rows],
                self.values[rows],
                self.value_hashes[rows],
            )
        return ScanChunk(
            self.seed,
            self.hashes.take(rows),
            self.keys.take(rows, axis=0),
            self.values.take(rows, axis=0),
            self.value_hashes.take(rows),
        )

    @staticmethod
    def joined(chunks: Sequence[ScanChunk]) -> ScanChunk:
        """All rows of at least one chunk, sorted; the seed is the first one's."""
        if len(chunks) == 1:
            return chunks[0]
        whole = ScanChunk(
            chunks[0].seed,
            np.concatenate([one.hashes for one in chunks]),
            np.concatenate([one.keys for one in chunks]),
            np.concatenate([one.values for one in chunks]),
            np.concatenate([one.value_hashes for one in chunks]),
        )
        return whole.take(np.argsort(whole.hashes))

    @staticmethod
    def empty(seed: int, key_size: int, value_size: int) -> ScanChunk:
        nothing = np.zeros(0, np.uint64)
        keys, values = np.zeros((0, key_size), np.uint8), np.zeros((0, value_size), np.uint8)
        return ScanChunk(seed, nothing, keys, values, nothing)


@dataclass(frozen=True, slots=True)
class ScanSlice:
    """Scanned entries whose key hash lies in ``low``..``high``."""

    low: int
    high: int
    rows: ScanChunk


def cut_slices(chunks: list[ScanChunk], slices_min: int, nothing: ScanChunk) -> Iterator[ScanSlice]:
    """The rows of all chunks, in slices of about ``_SLICE_ROWS``; empties the list on the way.

    ``nothing``: the slice of a range without rows. Chunks of different seeds keep the first one's,
    which is not the one in force any more, so that whoever compares tells them by it.
    """
    rows = sum(len(chunk) for chunk in chunks)
    seed = chunks[0].seed if chunks else nothing.seed
    joined = list(_join(chunks))
    bits = min(max(rows // _SLICE_ROWS, slices_min - 1).bit_length(), _SLICE_BITS_MAX)
    step = 1 << (HASH_BITS - bits)
    lows = np.arange(1, 1 << bits, dtype=np.uint64) * np.uint64(step if bits else 0)
    edges = [[0, *np.searchsorted(one.hashes, lows).tolist(), len(one)] for one in joined]
    for number in range(1 << bits):
        parts = [
            one.take(slice(at[number], at[number + 1]))
            for one, at in zip(joined, edges, strict=True)
            if at[number + 1] > at[number]
        ]
        found = ScanChunk.joined(parts) if parts else nothing
        yield ScanSlice(number * step, (number + 1) * step - 1, replace(found, seed=seed))


def _join(chunks: list[ScanChunk]) -> Iterator[ScanChunk]:
    """Few large chunks out of many small ones, each let go as soon as it is copied."""
    chunks.reverse()
    while chunks:
        group = [chunks.pop()]
        rows = len(group[0])
        while chunks and rows < _JOINED_ROWS:
            group.append(chunks.pop())
            rows += len(group[-1])
        if rows:
            yield ScanChunk.joined(group)
