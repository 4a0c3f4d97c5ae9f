"""What the stream says a map holds, as fingerprints, to tell whose writes a scan has found.

Invariant: after every judged message and every published change, ``Fingerprints`` equals the fold
of the stream plus the node's own unobserved changes. A scan that differs from it therefore found a
local write, except where a write of the bridge itself may have happened during the scan: such keys
are left for the next scan, so that doubt never turns a foreign value into an own change.

An entry costs its key and sixteen bytes: a hash of the key, a hash of the value.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.core.keys import SEED, KeySet, hash_rows, last_rows
from bridge.model import U8, U64, DeltaBatch, Op

Flags = npt.NDArray[np.bool_]
_UNMERGED_ROWS_MAX = 65_536


@dataclass(frozen=True, slots=True)
class Differences:
    """What a scan found that the stream does not know."""

    updated_keys: U8
    updated_values: U8
    deleted_keys: U8
    deferred: int  # keys in doubt, left for the next scan


@dataclass(frozen=True, slots=True)
class _Changes:
    ops: U8
    keys: U8
    value_hashes: U64


class Fingerprints:
    """Not thread-safe: the owner's lock makes noting and comparing atomic with judgement."""

    def __init__(self, key_size: int, compared: U8 | None = None) -> None:
        """``compared``: the bits of a value that count, ``u8[value_size]``; ``None``: all."""
        self._compared = compared
        self._keys: U8 = np.zeros((0, key_size), np.uint8)
        self._key_hashes: U64 = np.zeros(0, np.uint64)  # sorted, unique
        self._value_hashes: U64 = np.zeros(0, np.uint64)
        self._unmerged: list[_Changes] = []
        self._unmerged_rows = 0
        self._seed = SEED

    def __len__(self) -> int:
        self._merge()
        return len(self._keys)

    def note(self, batch: DeltaBatch) -> None:
        """Changes that are part of the fold from now on: captured here, or judged as foreign."""
        self._add(
            _Changes(batch.ops.copy(), batch.keys.copy(), self._value_hashes_of(batch.values))
        )

    def differences(
        self, keys: U8, values: U8, *, doubtful: KeySet | None, complete: bool
    ) -> Differences:
        """Compare scanned entries with the fold, and take the differences into it.

        ``doubtful``: keys that the bridge wrote while the scan ran. ``complete``: the scan covers
        the whole map, so what it lacks was deleted.
        """
        self._merge()
        key_hashes, order = self._sorted_hashes(keys)
        keys, values = keys[order], values[order]
        value_hashes = self._value_hashes_of(values)
        known, at = self._locate(key_hashes, keys)
        changed = ~known
        changed[known] = self._value_hashes[at[known]] != value_hashes[known]
        gone = np.zeros(len(self._keys), np.bool_)
        if complete:
            gone[:] = True
            gone[at[known]] = False
        deferred = self._defer(doubtful, keys, changed, gone)
        removed = self._keys[gone]
        found = Differences(keys[changed], values[changed], removed, deferred)
        self._add(_Changes(_ops(Op.UPDATE, keys[changed]), keys[changed], value_hashes[changed]))
        self._add(_Changes(_ops(Op.DELETE, removed), removed, np.zeros(len(removed), np.uint64)))
        return found

    def _value_hashes_of(self, values: U8) -> U64:
        return hash_rows(values if self._compared is None else values & self._compared)

    def _defer(self, doubtful: KeySet | None, keys: U8, changed: Flags, gone: Flags) -> int:
        """Take keys in doubt out of ``changed`` and ``gone`` (in place); how many there were."""
        if doubtful is None:
            return 0
        deferred = 0
        for flags, column in ((changed, keys), (gone, self._keys)):
            rows = np.flatnonzero(flags)
            held = rows[doubtful.holds(column[rows])]
            flags[held] = False
            deferred += len(held)
        return deferred

    def _sorted_hashes(self, keys: U8) -> tuple[U64, npt.NDArray[np.intp]]:
        """Hashes of unique keys, sorted, and the order; takes a new seed after a collision."""
        while True:
            hashes = hash_rows(keys, self._seed)
            order = np.argsort(hashes)
            hashes = hashes[order]
            twins = np.flatnonzero(hashes[1:] == hashes[:-1])
            if not len(twins):
                return hashes, order
            if (keys[order[twins]] == keys[order[twins + 1]]).all(axis=1).any():
                raise ValueError("the same key twice in one scan")
            self._reseed()

    def _locate(self, key_hashes: U64, keys: U8) -> tuple[Flags, npt.NDArray[np.intp]]:
        """Which scanned keys the fold knows, and where."""
        if not len(self._keys):
            return np.zeros(len(keys), np.bool_), np.zeros(len(keys), np.intp)
        at = np.searchsorted(self._key_hashes, key_hashes)
        at[at == len(self._keys)] = 0
        known = self._key_hashes[at] == key_hashes
        known[known] = (self._keys[at[known]] == keys[known]).all(axis=1)
        return known, at

    def _add(self, changes: _Changes) -> None:
        if not len(changes.ops):
            return
        self._unmerged.append(changes)
        self._unmerged_rows += len(changes.ops)
        if self._unmerged_rows > max(_UNMERGED_ROWS_MAX, len(self._keys)):
            self._merge()

    def _merge(self) -> None:
        """Fold what was noted since the last merge into the sorted columns."""
        if not self._unmerged:
            return
        ops = np.concatenate([_ops(Op.UPDATE, self._keys), *(c.ops for c in self._unmerged)])
        keys = np.concatenate([self._keys, *(c.keys for c in self._unmerged)])
        values = np.concatenate([self._value_hashes, *(c.value_hashes for c in self._unmerged)])
        self._unmerged, self._unmerged_rows = [], 0
        rows = last_rows(keys)
        if rows is not None:
            ops, keys, values = ops[rows], keys[rows], values[rows]
        held = ops == Op.UPDATE
        keys, values = keys[held], values[held]
        self._key_hashes, order = self._sorted_hashes(keys)
        self._keys, self._value_hashes = keys[order], values[order]

    def _reseed(self) -> None:
        """Two keys share a hash: hash everything anew with another seed."""
        self._seed = (self._seed * 0x9E3779B97F4A7C15 + 1) & 0xFFFFFFFFFFFFFFFF
        hashes = hash_rows(self._keys, self._seed)
        order = np.argsort(hashes)
        self._keys, self._key_hashes = self._keys[order], hashes[order]
        self._value_hashes = self._value_hashes[order]


def _ops(op: Op, keys: U8) -> U8:
    return np.full(len(keys), op, np.uint8)
