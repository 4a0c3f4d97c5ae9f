"""Policies: what messages make of keys, against a plain reckoning of each change in turn."""

from __future__ import annotations

import random

import numpy as np
import pytest

from bridge.core import policies
from bridge.core.keys import SEED, hash_rows
from bridge.core.policies import Folded, PolicyFold
from bridge.model import U8, U64, ConflictPolicy, DeltaBatch, Op

Entries = dict[int, tuple[int, ...]]
Change = tuple[Op, int, tuple[int, ...]]


def batch(changes: list[Change], width: int = 1) -> DeltaBatch:
    keys = np.array([key for _, key, _ in changes], "<u4").view(np.uint8).reshape(-1, 4)
    values = np.array([value for *_, value in changes], "<u8").view(np.uint8).reshape(-1, 8 * width)
    made = DeltaBatch.of_entries(Op.UPDATE, keys, values, 1)
    made.ops[:] = [op for op, *_ in changes]
    made.values[made.ops != Op.UPDATE] = 0
    return made


def held(found: Folded) -> dict[int, tuple[int, ...] | None]:
    keys = np.ascontiguousarray(found.batch.keys).view("<u4")[:, 0].tolist()
    values = np.ascontiguousarray(found.batch.values).view("<u8").tolist()
    rows = zip(keys, found.batch.ops, values, strict=True)
    return {key: tuple(value) if op == Op.UPDATE else None for key, op, value in rows}


class Plain:
    """The policies, one change at a time."""

    def __init__(self, policy: ConflictPolicy) -> None:
        self.policy = policy
        self.entries: Entries = {}
        self.owners: dict[int, str] = {}
        self.parts: dict[tuple[int, str], tuple[int, ...]] = {}

    def take(self, node: str, changes: list[Change]) -> None:
        if self.policy is ConflictPolicy.SUM:
            self._add(node, changes)
            return
        for op, key, value in changes:
            if op is Op.EVICT:
                continue
            if self.policy is ConflictPolicy.OWNER and self.owners.get(key, node) != node:
                continue
            if op is Op.DELETE:
                self.entries.pop(key, None)
                self.owners.pop(key, None)
                continue
            self.owners[key] = node
            before = self.entries.get(key)
            if self.policy is ConflictPolicy.MAX and before is not None:
                self.entries[key] = tuple(map(max, before, value))
            else:
                self.entries[key] = value

    def _add(self, node: str, changes: list[Change]) -> None:
        for op, key, value in changes:
            if op is Op.DELETE:
                self.parts.pop((key, node), None)
            elif op is Op.UPDATE:
                self.parts[key, node] = value
        self.entries = {}
        for (key, _), part in self.parts.items():
            before = self.entries.get(key, (0,) * len(part))
            added = ((a + b) % (1 << 64) for a, b in zip(before, part, strict=True))
            self.entries[key] = tuple(added)


@pytest.mark.parametrize("policy", [p for p in ConflictPolicy if p is not ConflictPolicy.STREAM])
@pytest.mark.parametrize("seed", range(23))
def test_it_is_what_one_change_after_the_other_makes(
    policy: ConflictPolicy, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "_RECENT_MIN", 17)
    chance = random.Random(seed)
    width = chance.choice((1, 3))
    fold, plain = PolicyFold(policy, 4, 8 * width), Plain(policy)
    for _ in range(211):
        node = chance.choice("abc")
        changes: list[Change] = [
            (
                chance.choice((Op.UPDATE, Op.UPDATE, Op.DELETE, Op.EVICT)),
                chance.randrange(97),
                tuple(chance.choice((0, 7, 1 << 63, (1 << 64) - 1)) for _ in range(width)),
            )
            for _ in range(chance.randrange(13))
        ]
        before = dict(plain.entries)
        found = fold.take(node, batch(changes, width))
        plain.take(node, changes)
        last = {key: value if op is Op.UPDATE else None for op, key, value in changes if op < 3}
        assert held(found) == {key: plain.entries.get(key) for key in last}
        rows = zip(held(found).items(), found.differs, found.changed, strict=True)
        for (key, value), differs, changed in rows:
            assert differs == (value != last[key])
            assert changed == (value != before.get(key))
    assert len(fold) == len(plain.entries)


@pytest.mark.parametrize("policy", [ConflictPolicy.OWNER, ConflictPolicy.SUM])
def test_keys_that_are_gone_do_not_stay_in_memory(
    policy: ConflictPolicy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policies, "_RECENT_MIN", 17)
    fold = PolicyFold(policy, 4, 8)
    for key in range(1009):
        fold.take("a", batch([(Op.UPDATE, key, (1,))]))
        fold.take("a", batch([(Op.DELETE, key, (0,))]))
    assert len(fold._index) <= 19
    assert len(fold._held) <= 64
    assert fold._parts is None or len(fold._parts._held) <= 64


def test_keys_that_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    def poor(rows: U8, seed: int) -> U64:
        return hash_rows(rows, seed) % np.uint64(3 if seed == SEED else 1 << 63)

    monkeypatch.setattr(policies, "hash_rows", poor)
    fold = PolicyFold(ConflictPolicy.MAX, 4, 8)
    found = fold.take("a", batch([(Op.UPDATE, key, (key,)) for key in range(101)]))
    assert held(found) == {key: (key,) for key in range(101)}
    assert held(fold.take("b", batch([(Op.UPDATE, 50, (7,))]))) == {50: (50,)}


def test_max_needs_whole_numbers() -> None:
    with pytest.raises(ValueError, match="8-byte"):
        PolicyFold(ConflictPolicy.MAX, 4, 12)
