"""Keys as columns: seeded hashes, the last change of each key, membership.

Invariant: no answer of this module depends on a hash. Hashes only decide where to look; every
equality that matters is confirmed on the bytes, and a collision costs time, never a wrong result.
The seed is random per process, so nobody can choose keys that collide.
"""

from __future__ import annotations

import os
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from bridge.model import U8, U64, Rows

SEED: Final = int.from_bytes(os.urandom(8), "little")

# Multipliers with well-mixed bits (the finaliser constants of splitmix64).
_MIX_A: Final = np.uint64(0xBF58476D1CE4E5B9)
_MIX_B: Final = np.uint64(0x94D049BB133111EB)
_SHIFT: Final = np.uint64(29)
_FOLD: Final = np.uint64(32)
_SLOTS_PER_ROW: Final = 4  # rounded up to a power of two
_SLOTS_MIN: Final = 1 << 13
_ROUND_SHIFTS: Final = (0, 32, 16, 24, 8, 40)


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


class _Round(NamedTuple):
    """Slots chosen by some bits of the hash, each with the last row that wrote its number there."""

    shift: np.uint64
    mask: np.uint64
    table: npt.NDArray[np.int32]

    def candidates(self, hashes: U64) -> npt.NDArray[np.int32]:
        slots = hashes >> self.shift
        slots &= self.mask
        return self.table.take(slots.view(np.intp))


def _round(hashes: U64, numbers: npt.NDArray[np.int32], shift: int) -> _Round:
    size = max(1 << (_SLOTS_PER_ROW * len(numbers)).bit_length(), _SLOTS_MIN)
    slots = hashes >> np.uint64(shift)
    slots &= np.uint64(size - 1)
    table = np.zeros(size, np.int32)
    table[slots.view(np.intp)] = numbers  # numpy assigns in order, so the last one stays
    return _Round(np.uint64(shift), np.uint64(size - 1), table)


class KeySet:
    """A fixed set of keys to look others up in, built once from columns of keys.

    A key that comes several times is represented by its last row. A row whose slot was taken by
    another key goes into the next round, which looks at other bits of the hash; the few that no
    round has a place for are compared as bytes.
    """

    __slots__ = ("_hashes", "_keys", "_rest", "_rounds", "again")

    def __init__(self, keys: U8) -> None:
        self._keys, self._hashes = keys, hash_rows(keys)
        self._rounds: list[_Round] = []
        self._rest: dict[bytes, int] = {}
        self.again: list[Rows] = []  # rows whose key comes again
        numbers = np.arange(len(keys), dtype=np.int32)
        for shift in _ROUND_SHIFTS:
            if not len(numbers):
                return
            whole = len(numbers) == len(keys)
            hashes = self._hashes if whole else self._hashes.take(numbers)
            made = _round(hashes, numbers, shift)
            self._rounds.append(made)
            winners = made.candidates(hashes)
            beaten = np.flatnonzero(winners != numbers)
            if not len(beaten):
                return
            numbers, winners = numbers.take(beaten), winners.take(beaten)
            same = equal_rows(keys.take(winners, axis=0), keys.take(numbers, axis=0))
            self.again.append(numbers[same].astype(np.intp))
            numbers = numbers[~same]
        for row in numbers.tolist():
            earlier = self._rest.pop(keys[row].tobytes(), None)
            if earlier is not None:
                self.again.append(np.array([earlier], np.intp))
            self._rest[keys[row].tobytes()] = row

    def __len__(self) -> int:
        return len(self._hashes)

    def holds(self, keys: U8) -> npt.NDArray[np.bool_]:
        """``bool[n]``: which of the given keys are in the set."""
        found = np.zeros(len(keys), np.bool_)
        if not len(self) or not len(keys):
            return found
        hashes = hash_rows(keys)
        for a_round in self._rounds:
            candidates = a_round.candidates(hashes)
            rows = np.flatnonzero(self._hashes.take(candidates) == hashes)
            if len(rows):
                held = self._keys.take(candidates.take(rows), axis=0)
                found[rows[equal_rows(held, keys.take(rows, axis=0))]] = True
        if self._rest:
            for row in np.flatnonzero(~found):
                found[row] = keys[row].tobytes() in self._rest
        return found


def last_rows(keys: U8) -> Rows | None:
    """Rows that hold the last change of their key, ascending; ``None`` when all rows do.

    ``None`` is the common case and saves the caller a copy of every column.
    """
    if len(keys) < 2:
        return None
    again = KeySet(keys).again
    if not any(len(rows) for rows in again):
        return None
    last = np.ones(len(keys), np.bool_)
    for rows in again:
        last[rows] = False
    return np.flatnonzero(last)


def equal_rows(some: U8, others: U8) -> npt.NDArray[np.bool_]:
    """``bool[n]``: whether the rows at the same places are the same bytes."""
    equal: npt.NDArray[np.bool_] = (words(some) == words(others)).all(axis=1)
    return equal
