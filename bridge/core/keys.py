"""Keys as columns: seeded hashes, the last change of each key, membership.

Invariant: no answer of this module depends on a hash. Hashes only decide where to look; every
equality that matters is confirmed on the bytes, and a collision costs time, never a wrong result.
The seed is random per process, so nobody can choose keys that collide.
"""

from __future__ import annotations

import os
from typing import Final

import numpy as np
import numpy.typing as npt

from bridge.model import U8, U64, Rows

SEED: Final = int.from_bytes(os.urandom(8), "little")

# Multipliers with well-mixed bits (the finaliser constants of splitmix64).
_MIX_A: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B: Final = np.uint64(0x94D049BB133111EB)
_SHIFT: Final = np.uint64(29)
_FOLD: Final = np.uint64(32)


def words(rows: U8) -> U64:
    """The rows as ``u64[n, ceil(size / 8)]``, zero-padded; a view where no padding is needed."""
    n, size = rows.shape
    if size % 8 == 0 and rows.flags.c_contiguous:
        return rows.view(np.uint64)
    padded = np.zeros((n, (size + 7) // 8 * 8), np.uint8)
    padded[:, :size] = rows
    return padded.view(np.uint64)


def hash_rows(rows: U8, seed: int = SEED) -> U64:
    """A 64-bit hash of each row, ``u64[n]``: one multiply-fold round per eight bytes."""
    columns = words(rows)
    h = np.full(len(rows), seed & 0xFFFFFFFFFFFFFFFF, np.uint64)
    scratch = np.empty_like(h)
    for i in range(columns.shape[1]):
        np.bitwise_xor(h, columns[:, i], out=h)
        np.multiply(h, _MIX_A, out=h)
        np.right_shift(h, _SHIFT, out=scratch)
        np.bitwise_xor(h, scratch, out=h)
        np.multiply(h, _MIX_B, out=h)
        np.right_shift(h, _FOLD, out=scratch)
        np.bitwise_xor(h, scratch, out=h)
    return h


def last_rows(keys: U8) -> Rows | None:
    """Rows that hold the last change of their key, ascending; ``None`` when all rows do.

    ``None`` is the common case and saves the caller a copy of every column.
    """
    n = len(keys)
    if n < 2:
        return None
    bits = np.uint64((n - 1).bit_length())
    mask = np.uint64((1 << int(bits)) - 1)
    tagged = hash_rows(keys)
    np.bitwise_and(tagged, ~mask, out=tagged)
    np.bitwise_or(tagged, np.arange(n, dtype=np.uint64), out=tagged)
    tagged.sort()
    groups = tagged >> bits
    same = groups[1:] == groups[:-1]
    if not same.any():
        return None
    rows = (tagged & mask).astype(np.intp)
    pairs = np.flatnonzero(same)
    if (keys[rows[pairs]] != keys[rows[pairs + 1]]).any():
        return _last_rows_exact(keys)
    return np.sort(rows[np.append(~same, True)])


def _last_rows_exact(keys: U8) -> Rows | None:
    """The same by comparing bytes: for the batch in which two keys share a hash."""
    columns = words(keys)
    order = np.lexsort(columns.T)  # stable: equal keys keep their order
    ordered = columns[order]
    last = np.append((ordered[1:] != ordered[:-1]).any(axis=1), True)
    return None if last.all() else np.sort(order[last])


class KeySet:
    """A fixed set of keys to look others up in, built once from columns of keys."""

    __slots__ = ("_hashes", "_keys")

    def __init__(self, keys: U8) -> None:
        hashes = hash_rows(keys)
        order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[order]
        self._keys = keys[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def holds(self, keys: U8) -> npt.NDArray[np.bool_]:
        """``bool[n]``: which of the given keys are in the set."""
        found = np.zeros(len(keys), np.bool_)
        if not len(self) or not len(keys):
            return found
        hashes = hash_rows(keys)
        at = np.searchsorted(self._hashes, hashes)
        at[at == len(self)] = 0
        candidates = np.flatnonzero(self._hashes[at] == hashes)
        if not len(candidates):
            return found
        equal = (self._keys[at[candidates]] == keys[candidates]).all(axis=1)
        found[candidates[equal]] = True
        for row in candidates[~equal]:  # a collision: look at every key with this hash
            first = at[row]
            end = np.searchsorted(self._hashes, hashes[row], side="right")
            found[row] = bool((self._keys[first:end] == keys[row]).all(axis=1).any())
        return found
