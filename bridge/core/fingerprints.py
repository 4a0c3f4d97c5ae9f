"""What the stream says a map holds, as fingerprints, to tell whose writes a scan has found.

Invariant: after every judged message and every published change, ``Fingerprints`` equals the fold
of the stream plus the node's own unobserved changes. A scan that differs from it therefore found a
local write, except of keys that changed, or that the bridge may have written, since the scan began:
such keys are left for the next scan, so that doubt never turns a foreign or an old value into an
own change.

An entry costs its key and nineteen bytes: a hash of the key, a hash of the value, three flags. No
call does more than a bounded part of the work, ``begin`` and ``__len__`` apart, so that whoever
empties a ring may call them in between.

Most of what a scan reads stands in the fold already. ``sift`` throws that away chunk by chunk, so
that a map is never held in memory for the sake of a few differences. What it throws away is no
difference later either: a row that changes after it was read is late, and left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bridge.core.foldpart import CollisionError, FoldPart, Noted
from bridge.core.keys import SEED, KeySet, equal_rows, hash_rows
from bridge.core.scanrows import ScanChunk, ScanSlice, cut_slices
from bridge.model import U8, U64, DeltaBatch, Flags, Op

_UNSORTED_ROWS_MAX = 65_536  # changes that wait to be sorted into the ranges
_WAITING_ROWS = 16_384  # changes beside a range that are worth a merge
_MERGES_MAX = 8  # at one call


@dataclass(frozen=True, slots=True)
class Differences:
    """What a scan found that the stream does not know."""

    updated_keys: U8
    updated_values: U8
    deleted_keys: U8
    deferred: int  # keys in doubt, left for the next scan


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

    def chunk(self, keys: U8, values: U8) -> ScanChunk:
        """Some of the open scan, made ready for ``sift``. Needs no lock."""
        seed = self._seed
        hashes = hash_rows(keys, seed)
        whole = ScanChunk(seed, hashes, keys, values, self._values(values))
        return whole.take(np.argsort(hashes))

    def sift(self, chunk: ScanChunk) -> ScanChunk:
        """What of a chunk does not stand in the fold just so, as far as can be told cheaply."""
        if chunk.seed == self._seed:
            self._merge([part for part in self._parts if part.stale][:_MERGES_MAX])
        if chunk.seed != self._seed:
            return chunk
        kept = np.ones(len(chunk), np.bool_)
        edges = np.searchsorted(chunk.hashes, self._lows[1:]).tolist()
        for part, start, end in zip(self._parts, [0, *edges], [*edges, len(chunk)], strict=True):
            if start < end:
                rows = slice(start, end)
                same = part.sift(chunk.hashes[rows], chunk.keys[rows], chunk.value_hashes[rows])
                kept[start + same] = False
        return chunk if kept.all() else chunk.take(np.flatnonzero(kept))

    def cut(self, chunks: list[ScanChunk], value_size: int) -> Iterator[ScanSlice]:
        """What was sifted of a whole scan, in slices that are compared one by one. Needs no lock.

        Empties ``chunks``. The first step costs most: where all of a million entries are new 0.1 s.
        """
        nothing = ScanChunk.empty(self._seed, self._key_size, value_size)
        return cut_slices(chunks, len(self._parts), nothing)

    def compare(
        self, piece: ScanSlice, *, doubtful: KeySet | None, complete: bool = True
    ) -> Differences:
        """Compare one slice with the fold, and take the differences into it.

        ``doubtful``: keys that the bridge may have written while the scan ran. ``complete``: the
        scan has read the whole map, so what it lacks was deleted. After a collision of hashes,
        which takes a new seed, all of the slice is left in doubt.
        """
        fold = self._between(piece.low, piece.high)
        scanned = piece.rows
        hashes, keys, values = scanned.hashes, scanned.keys, scanned.values
        if scanned.seed == self._seed and self._collide(hashes, keys):
            self._reseed()
        if scanned.seed != self._seed:
            return Differences(keys[:0], values[:0], keys[:0], len(keys))
        value_hashes = scanned.value_hashes
        known, at = _locate(fold, hashes, keys)
        rows = at[known]
        changed = ~known
        changed[known] = ~fold.held[rows] | (fold.values[rows] != value_hashes[known])
        gone = fold.held & ~fold.seen if complete else np.zeros(len(fold), np.bool_)
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
        seed = self._seed
        self._merge(self._concerned(low, high))
        if self._seed != seed:
            return Noted.empty(self._key_size)
        self._split()
        found = []
        for part in self._concerned(low, high):
            start = int(np.searchsorted(part.rows.hashes, np.uint64(low), side="left"))
            end = int(np.searchsorted(part.rows.hashes, np.uint64(high), side="right"))
            found.append(part.rows.take(slice(start, end)))
        return Noted.concatenate(found)

    def _concerned(self, low: int, high: int) -> list[FoldPart]:
        first = int(np.searchsorted(self._lows, np.uint64(low), side="right")) - 1
        last = int(np.searchsorted(self._lows, np.uint64(high), side="right"))
        return self._parts[first:last]

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
        late, seen = np.full(len(ops), self._scanning), np.zeros(len(ops), np.bool_)
        changes = Noted(ops == Op.UPDATE, late, seen, keys, hashes, values)
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
                whole.add(replace(changes, hashes=hash_rows(changes.keys, self._seed)))
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
    known[known] = equal_rows(fold.keys[at[known]], keys[known])
    return known, at


def _ops(op: Op, flags: Flags) -> U8:
    return np.full(int(flags.sum()), op, np.uint8)
