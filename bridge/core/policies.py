"""Other ways than the stream's order to settle who is right about a key.

``owner``   the node that brought a key into the map owns it; changes of others on it are void,
            until the owner deletes it.
``max``     a value is a row of 64-bit numbers, little-endian, and each only grows: a key holds
            the largest that any node wrote since the key was last deleted.
``sum``     the same kind of values; each node has its own part of a key, what it wrote last, and
            a node that applies holds the sum of the parts, modulo 2**64. It writes none itself.

Invariant: what a policy makes of the stream depends on the stream alone: every node that has read
the same messages holds the same entries, whatever its programs do. A node's own change is pending
until its message comes back, as ever; only then it is known what became of it, and where the policy
says something else than the node wrote, that is written.

A policy keeps every entry of the map once more: keys, values and sixteen bytes each.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from bridge.core.keys import SEED, hash_rows
from bridge.model import U8, U64, ConflictPolicy, DeltaBatch, Flags, Op

Index = npt.NDArray[np.intp]
_RECENT_MIN = 4_096
_OF_NUMBERS = (ConflictPolicy.MAX, ConflictPolicy.SUM)
NOBODY = 0


@dataclass(frozen=True, slots=True)
class Folded:
    """What a message made of its keys. ``batch``: one row per key, with what it holds now.

    differs   bool[n]: that is not what the message's last change of the key says
    changed   bool[n]: it is not what the key held before the message
    """

    batch: DeltaBatch
    differs: Flags
    changed: Flags


class PolicyFold:
    """The fold of the stream under a policy. Not thread-safe: it belongs to the judge."""

    def __init__(self, policy: ConflictPolicy, key_size: int, value_size: int) -> None:
        if policy in _OF_NUMBERS and value_size % 8:
            raise ValueError(f"values: need a whole number of 8-byte numbers (got {value_size})")
        self._policy = policy
        self._index = _Rows(key_size)
        self._values: U8 = np.zeros((0, value_size), np.uint8)
        self._held: Flags = np.zeros(0, np.bool_)
        self._owners: npt.NDArray[np.uint32] = np.zeros(0, np.uint32)
        self._nodes: dict[str, int] = {}
        self._clean_at = _RECENT_MIN  # keys, gone ones included
        self._parts = _Parts(key_size, value_size) if policy is ConflictPolicy.SUM else None

    def __len__(self) -> int:
        return int(np.count_nonzero(self._held))

    def take(self, node: str, batch: DeltaBatch) -> Folded:
        """The next message of the stream, without what was seen before. Evictions are nothing."""
        if len(batch) and int(batch.ops.max()) >= Op.EVICT:
            batch = batch.take(batch.ops != Op.EVICT)
        if not len(batch):
            return Folded(batch, np.zeros(0, np.bool_), np.zeros(0, np.bool_))
        if len(self._index) >= self._clean_at:
            self._clean()
        rows, last, group = self._index.locate(batch.keys)
        self._grow()
        held, values = self._held[rows].copy(), self._values[rows].copy()
        if self._policy is ConflictPolicy.OWNER:
            now_held, now_values = self._owned(node, batch.take(last), rows)
        elif self._parts is not None:
            now_held, now_values = self._summed(self._parts, node, batch.take(last), rows)
        else:
            now_held, now_values = self._largest(batch, rows, last, group)
        now_values[~now_held] = 0
        self._held[rows], self._values[rows] = now_held, now_values
        said = batch.take(last)
        said_held = said.ops == Op.UPDATE
        ops = np.where(now_held, np.uint8(Op.UPDATE), np.uint8(Op.DELETE)).astype(np.uint8)
        return Folded(
            replace(said, ops=ops, values=now_values),
            (said_held != now_held) | (now_held & (said.values != now_values).any(axis=1)),
            (held != now_held) | (now_held & (values != now_values).any(axis=1)),
        )

    def _owned(self, node: str, said: DeltaBatch, rows: Index) -> tuple[Flags, U8]:
        number = self._nodes.setdefault(node, len(self._nodes) + 1)
        owners = self._owners[rows]
        allowed = (owners == NOBODY) | (owners == number)
        kept = said.ops == Op.UPDATE
        self._owners[rows] = np.where(allowed, np.where(kept, number, NOBODY), owners)
        return (
            np.where(allowed, kept, self._held[rows]),
            np.where(allowed[:, None], said.values, self._values[rows]),
        )

    def _summed(self, parts: _Parts, node: str, said: DeltaBatch, rows: Index) -> tuple[Flags, U8]:
        """``_owners`` counts the nodes that have a part of the key."""
        number = self._nodes.setdefault(node, len(self._nodes) + 1)
        more, holders = parts.take(number, said)
        self._owners[rows] += holders.astype(np.uint32)  # modulo 2**32, so -1 takes one away
        numbers = _numbers(self._values[rows]) + more
        return self._owners[rows] > 0, numbers.astype("<u8").view(np.uint8)

    def _largest(
        self, batch: DeltaBatch, rows: Index, last: Index, group: Index
    ) -> tuple[Flags, U8]:
        places = np.arange(len(batch))
        reset = np.full(len(rows), -1, np.intp)  # the last delete of each key in this message
        deletes = batch.ops == Op.DELETE
        np.maximum.at(reset, group[deletes], places[deletes])
        live = ~deletes & (places > reset[group])
        kept = self._held[rows] & (reset < 0)
        numbers = _numbers(self._values[rows])
        numbers[~kept] = 0
        np.maximum.at(numbers, group[live], _numbers(batch.values[live]))
        held = kept.copy()
        held[group[live]] = True
        return held, numbers.astype("<u8").view(np.uint8).reshape(len(rows), -1)

    def _clean(self) -> None:
        """Forget keys that are gone: nothing is known of them that one never seen lacks."""
        kept = np.flatnonzero(self._held)
        self._index.keep(kept)
        self._held, self._owners = self._held[kept], self._owners[kept]
        self._values = self._values[kept]
        self._clean_at = max(2 * len(kept), _RECENT_MIN)

    def _grow(self) -> None:
        more = len(self._index) - len(self._held)
        if more > 0:
            room = max(more, len(self._held) // 2)
            self._held = np.concatenate([self._held, np.zeros(room, np.bool_)])
            self._owners = np.concatenate([self._owners, np.zeros(room, np.uint32)])
            nothing = np.zeros((room, self._values.shape[1]), np.uint8)
            self._values = np.concatenate([self._values, nothing])


class _Parts:
    """What each node wrote last of each key."""

    def __init__(self, key_size: int, value_size: int) -> None:
        self._index = _Rows(key_size + 4)
        self._numbers: U64 = np.zeros((0, value_size // 8), np.uint64)
        self._held: Flags = np.zeros(0, np.bool_)
        self._clean_at = _RECENT_MIN

    def take(self, node: int, said: DeltaBatch) -> tuple[U64, npt.NDArray[np.int64]]:
        """By how much one node's parts grow, modulo 2**64; 1: a new part, -1: one that is gone."""
        if len(self._index) >= self._clean_at:
            kept = np.flatnonzero(self._held)
            self._index.keep(kept)
            self._numbers, self._held = self._numbers[kept], self._held[kept]
            self._clean_at = max(2 * len(kept), _RECENT_MIN)
        name = np.tile(np.array([node], "<u4").view(np.uint8), (len(said), 1))
        rows, last, _ = self._index.locate(np.concatenate([said.keys, name], axis=1))
        missing = len(self._index) - len(self._held)
        if missing > 0:
            room = max(missing, len(self._held) // 2)
            nothing = np.zeros((room, self._numbers.shape[1]), np.uint64)
            self._numbers = np.concatenate([self._numbers, nothing])
            self._held = np.concatenate([self._held, np.zeros(room, np.bool_)])
        held = said.ops[last] == Op.UPDATE
        numbers = _numbers(said.values[last])
        numbers[~held] = 0
        more, holders = np.empty_like(numbers), np.empty(len(said), np.int64)
        more[last] = numbers - self._numbers[rows]
        holders[last] = held.astype(np.int64) - self._held[rows]
        self._numbers[rows], self._held[rows] = numbers, held
        return more, holders


def _numbers(values: U8) -> U64:
    return np.ascontiguousarray(values).view("<u8").astype(np.uint64)


class _Rows:
    """A number for each key that was ever seen, from 0 on. Keys that are gone keep theirs.

    Two sorted columns of hashes: a large one, and a small one of late, merged now and then, so that
    a message costs as much as it holds.
    """

    def __init__(self, key_size: int) -> None:
        self._keys: U8 = np.zeros((0, key_size), np.uint8)
        self._count = 0
        self._seed = SEED
        self._old: tuple[U64, Index] = (np.zeros(0, np.uint64), np.zeros(0, np.intp))
        self._late: tuple[U64, Index] = (np.zeros(0, np.uint64), np.zeros(0, np.intp))

    def __len__(self) -> int:
        return self._count

    def locate(self, keys: U8) -> tuple[Index, Index, Index]:
        """Numbers of the distinct keys; the last row of each; of each row, which key it is."""
        while True:
            hashes = hash_rows(keys, self._seed)
            unique, backwards, group = np.unique(
                hashes[::-1], return_index=True, return_inverse=True
            )
            last = len(keys) - 1 - backwards
            group = group[::-1]
            rows = self._find(unique)
            known = rows >= 0
            same = bool((keys[last[group]] == keys).all())
            if same and bool((self._keys[rows[known]] == keys[last[known]]).all()):
                break
            self._reseed()  # two keys share a hash
        new = np.flatnonzero(~known)
        if len(new):
            rows[new] = self._add(unique[new], keys[last[new]])
        return rows, last, group

    def _find(self, hashes: U64) -> Index:
        rows = np.full(len(hashes), -1, np.intp)
        for sorted_hashes, numbers in (self._old, self._late):
            if len(sorted_hashes):
                at = np.searchsorted(sorted_hashes, hashes)
                at[at == len(sorted_hashes)] = 0
                found = sorted_hashes[at] == hashes
                rows[found] = numbers[at[found]]
        return rows

    def _add(self, hashes: U64, keys: U8) -> Index:
        """``hashes`` are sorted and not known yet."""
        numbers = np.arange(self._count, self._count + len(keys), dtype=np.intp)
        if self._count + len(keys) > len(self._keys):
            room = max(len(keys), len(self._keys) // 2)
            self._keys = np.concatenate([self._keys, np.zeros((room, keys.shape[1]), np.uint8)])
        self._keys[numbers] = keys
        self._count += len(keys)
        self._late = _merged(self._late, (hashes, numbers))
        if len(self._late[0]) > max(_RECENT_MIN, len(self._old[0]) // 16):
            self._old = _merged(self._old, self._late)
            self._late = (self._late[0][:0], self._late[1][:0])
        return numbers

    def keep(self, rows: Index) -> None:
        """Forget all keys but these; they are numbered anew, in this order."""
        self._keys, self._count = self._keys[rows], len(rows)
        hashes = hash_rows(self._keys, self._seed)
        order = np.argsort(hashes)
        self._old = (hashes[order], order)
        self._late = (self._late[0][:0], self._late[1][:0])

    def _reseed(self) -> None:
        while True:
            self._seed = (self._seed * 0x9E3779B97F4A7C15 + 1) & 0xFFFFFFFFFFFFFFFF
            hashes = hash_rows(self._keys[: self._count], self._seed)
            order = np.argsort(hashes)
            hashes = hashes[order]
            if not (hashes[1:] == hashes[:-1]).any():
                break
        self._old = (hashes, order)
        self._late = (self._late[0][:0], self._late[1][:0])


def _merged(some: tuple[U64, Index], more: tuple[U64, Index]) -> tuple[U64, Index]:
    at = np.searchsorted(some[0], more[0])
    return np.insert(some[0], at, more[0]), np.insert(some[1], at, more[1])
