"""What the stream says a map holds, as fingerprints, to tell whose writes a scan has found.

Invariant: after every judged message and every published change, ``Fingerprints`` equals the fold
of the stream plus the node's own unobserved changes. A scan that differs from it therefore found a
local write, except of keys that changed, or that the bridge may have written, since the scan began:
such keys are left for the next scan, so that doubt never turns a foreign or an old value into an
own change.

An entry costs its key and eighteen bytes: a hash of the key, a hash of the value, two flags. No
call does more than a bounded part of the work, ``begin`` and ``__len__`` apart, so that whoever
empties a ring may call them in between.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bridge.core.foldpart import CollisionError, Flags, FoldPart, Noted
from bridge.core.keys import SEED, KeySet, hash_rows
from bridge.model import U8, U64, DeltaBatch, Op

_UNSORTED_ROWS_MAX = 65_536  # changes that wait to be sorted into the ranges
_WAITING_ROWS = 16_384  # changes beside a range that are worth a merge
_MERGES_MAX = 8  # at one call
_SLICE_ROWS = 16_384  # of a scan, compared at one call
_HASH_BITS = 64


@dataclass(frozen=True, slots=True)
class Differences:
    """What a scan found that the stream does not know."""

    updated_keys: U8
    updated_values: U8
    deleted_keys: U8
    deferred: int  # keys in doubt, left for the next scan


@dataclass(frozen=True, slots=True)
class ScanSlice:
    """Scanned entries whose key hash lies in ``low``..``high``, by the hashes of one seed."""

    low: int
    high: int
    seed: int
    keys: U8
    values: U8
    hashes: U64


class Fingerprints:
    """Not thread-safe: the owner's lock makes noting and comparing atomic with judgement.

    ``counted``: ``u8[value_size]``, the bits of a value that count; ``None``: all count.
    """

    def __init__(self, key_size: int, counted: U8 | None = None) -> None:
        self._key_size = key_size
        self._counted = counted
        self._parts = [FoldPart(0, Noted.empty(key_size))]
        self._lows: U64 = np.zeros(1, np.uint64)
        self._unsorted: list[tuple[U8, U8, U64]] = []  # operations, keys, hashes of values
        self._unsorted_rows = 0
        self._scanning = False
        self._seed = SEED

    def __len__(self) -> int:
        self._sort()
        self._merge(self._parts)
        return sum(int(part.rows.held.sum()) for part in self._parts)

    def note(self, batch: DeltaBatch) -> None:
        """Changes that are part of the fold from now on: captured here, or judged as foreign."""
        self._add(batch.ops.copy(), batch.keys.copy(), self._values(batch.values))

    def begin(self) -> None:
        """A scan begins. What is noted from now on is left out when it is compared."""
        self._sort()
        for part in self._parts:
            part.begin()
        self._scanning = True

    def end(self) -> None:
        """The scan has been compared, or given up."""
        self._sort()
        self._scanning = False

    def cut(self, chunks: Sequence[tuple[U8, U8]], value_size: int) -> Iterator[ScanSlice]:
        """The chunks of a whole scan, in slices that are compared one by one.

        The first step costs most: of a million entries 0.1 s.
        """
        keys = np.concatenate([np.zeros((0, self._key_size), np.uint8), *(k for k, _ in chunks)])
        values = np.concatenate([np.zeros((0, value_size), np.uint8), *(v for _, v in chunks)])
        hashes = hash_rows(keys, self._seed)
        bits = max(len(keys) // _SLICE_ROWS, len(self._parts) - 1).bit_length()
        if not bits:
            yield ScanSlice(0, (1 << _HASH_BITS) - 1, self._seed, keys, values, hashes)
            return
        seed = self._seed
        bits, step = min(bits, 16), 1 << (_HASH_BITS - min(bits, 16))
        at = (hashes >> np.uint64(_HASH_BITS - bits)).astype(np.uint16)
        order = np.argsort(at, kind="stable")  # of 16-bit numbers: by radix
        ends = np.cumsum(np.bincount(at, minlength=1 << bits)).tolist()
        for number, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
            rows = order[start:end]
            low = number * step
            yield ScanSlice(low, low + step - 1, seed, keys[rows], values[rows], hashes[rows])

    def compare(
        self, piece: ScanSlice, *, doubtful: KeySet | None, complete: bool = True
    ) -> Differences:
        """Compare one slice with the fold, and take the differences into it.

        ``doubtful``: keys that the bridge may have written while the scan ran. ``complete``: the
        scan covers the whole map, so what it lacks was deleted.
        After a collision of hashes, which takes a new seed, all of the slice is left in doubt.
        """
        fold = self._between(piece.low, piece.high)
        order = np.argsort(piece.hashes)
        hashes, keys, values = piece.hashes[order], piece.keys[order], piece.values[order]
        if piece.seed == self._seed and self._collide(hashes, keys):
            self._reseed()
        if piece.seed != self._seed:
            return Differences(keys[:0], values[:0], keys[:0], len(keys))
        value_hashes = self._values(values)
        known, at = _locate(fold, hashes, keys)
        rows = at[known]
        changed = ~known
        changed[known] = ~fold.held[rows] | (fold.values[rows] != value_hashes[known])
        gone = fold.held.copy() if complete else np.zeros(len(fold), np.bool_)
        gone[rows] = False
        late = np.zeros(len(keys), np.bool_)
        late[known] = fold.late[rows]
        deferred = int((changed & late).sum() + (gone & fold.late).sum())
        changed &= ~late
        gone &= ~fold.late
        deferred += self._defer(doubtful, keys, changed, gone, fold.keys)
        removed = fold.keys[gone]
        found = Differences(keys[changed], values[changed], removed, deferred)
        self._add(_ops(Op.UPDATE, changed), found.updated_keys, value_hashes[changed])
        self._add(_ops(Op.DELETE, gone), removed, np.zeros(len(removed), np.uint64))
        return found

    def _defer(
        self, doubtful: KeySet | None, keys: U8, changed: Flags, gone: Flags, folded: U8
    ) -> int:
        """Take keys in doubt out of ``changed`` and ``gone`` (in place); how many there were."""
        if doubtful is None:
            return 0
        deferred = 0
        for flags, column in ((changed, keys), (gone, folded)):
            rows = np.flatnonzero(flags)
            held = rows[doubtful.holds(column[rows])]
            flags[held] = False
            deferred += len(held)
        return deferred

    def _values(self, values: U8) -> U64:
        return hash_rows(values if self._counted is None else values & self._counted)

    def _collide(self, hashes: U64, keys: U8) -> bool:
        twins = np.flatnonzero(hashes[1:] == hashes[:-1])
        if len(twins) and (keys[twins] == keys[twins + 1]).all(axis=1).any():
            raise ValueError("the same key twice in one scan")
        return bool(len(twins))

    def _between(self, low: int, high: int) -> Noted:
        """The fold's rows in a range of hashes, everything that was noted of them merged."""
        self._sort()
        first = int(np.searchsorted(self._lows, np.uint64(low), side="right")) - 1
        last = int(np.searchsorted(self._lows, np.uint64(high), side="right"))
        concerned = self._parts[first:last]
        seed = self._seed
        self._merge(concerned)
        if self._seed != seed:
            return Noted.empty(self._key_size)
        found = []
        for part in concerned:
            start = int(np.searchsorted(part.rows.hashes, np.uint64(low), side="left"))
            end = int(np.searchsorted(part.rows.hashes, np.uint64(high), side="right"))
            found.append(part.rows.take(slice(start, end)))
        return Noted.concatenate(found)

    def _add(self, ops: U8, keys: U8, value_hashes: U64) -> None:
        if not len(ops):
            return
        self._unsorted.append((ops, keys, value_hashes))
        self._unsorted_rows += len(ops)
        if self._unsorted_rows > _UNSORTED_ROWS_MAX:
            self._sort()
            full = [part for part in self._parts if part.waiting_rows > _WAITING_ROWS]
            full.sort(key=lambda part: part.waiting_rows, reverse=True)
            self._merge(full[:_MERGES_MAX])
            self._split()

    def _sort(self) -> None:
        """Put what was noted beside the ranges that it belongs to."""
        if not self._unsorted:
            return
        ops, keys, values = (np.concatenate(column) for column in zip(*self._unsorted, strict=True))
        self._unsorted, self._unsorted_rows = [], 0
        hashes = hash_rows(keys, self._seed)
        late = np.full(len(ops), self._scanning)
        changes = Noted(ops == Op.UPDATE, late, keys, hashes, values)
        if len(self._parts) == 1:
            self._parts[0].add(changes)
            return
        at = (np.searchsorted(self._lows, hashes, side="right") - 1).astype(np.uint16)
        order = np.argsort(at, kind="stable")
        ends = np.cumsum(np.bincount(at, minlength=len(self._parts))).tolist()
        for part, start, end in zip(self._parts, [0, *ends], ends, strict=False):
            if end > start:
                part.add(changes.take(order[start:end]))

    def _merge(self, parts: Sequence[FoldPart]) -> None:
        try:
            for part in parts:
                part.merge(scanning=self._scanning)
        except CollisionError:
            self._reseed()

    def _split(self) -> None:
        parts = [piece for part in self._parts for piece in part.split()]
        if len(parts) != len(self._parts):
            self._parts = parts
            self._lows = np.array([part.low for part in parts], np.uint64)

    def _reseed(self) -> None:
        """Two keys share a hash: hash everything anew with another seed."""
        self._sort()
        rows = [changes for part in self._parts for changes in (part.rows, *part.waiting)]
        while True:
            self._seed = (self._seed * 0x9E3779B97F4A7C15 + 1) & 0xFFFFFFFFFFFFFFFF
            whole = FoldPart(0, Noted.empty(self._key_size))
            for changes in rows:
                hashes = hash_rows(changes.keys, self._seed)
                whole.add(Noted(changes.held, changes.late, changes.keys, hashes, changes.values))
            try:
                whole.merge(scanning=self._scanning)
            except CollisionError:
                continue
            self._parts, self._lows = [whole], np.zeros(1, np.uint64)
            self._split()
            return


def _locate(fold: Noted, hashes: U64, keys: U8) -> tuple[Flags, npt.NDArray[np.intp]]:
    """Which scanned keys the fold knows, and where."""
    if not len(fold):
        return np.zeros(len(keys), np.bool_), np.zeros(len(keys), np.intp)
    at = np.searchsorted(fold.hashes, hashes)
    at[at == len(fold)] = 0
    known = fold.hashes[at] == hashes
    known[known] = (fold.keys[at[known]] == keys[known]).all(axis=1)
    return known, at


def _ops(op: Op, flags: Flags) -> U8:
    return np.full(int(flags.sum()), op, np.uint8)
