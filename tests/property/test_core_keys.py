"""Columns of keys against plain Python dictionaries, collisions of hashes included."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, strategies as st

from bridge.core import keys as module
from bridge.core.fingerprints import Fingerprints
from bridge.core.keys import KeySet, hash_rows, last_rows
from bridge.model import U8, DeltaBatch, Op
from tests.core_kit import differences

SIZES = st.sampled_from([1, 3, 4, 5, 8, 12, 16, 17, 40])


@st.composite
def key_columns(draw: st.DrawFn) -> U8:
    size = draw(SIZES)
    alphabet = draw(st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=9))
    chosen = draw(st.lists(st.sampled_from(alphabet), max_size=60))
    return column(chosen, size)


def column(rows: list[bytes], size: int) -> U8:
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), size)


@pytest.fixture(params=["spread", "colliding"], autouse=True)
def hashing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything once with the real hash and once with one that collides all the time."""
    if request.param == "colliding":

        def poor(rows: U8, seed: int = 0) -> np.ndarray:
            return (hash_rows(rows, seed) & np.uint64(1)) << np.uint64(63)

        monkeypatch.setattr(module, "hash_rows", poor)


@given(keys=key_columns())
def test_last_rows_are_those_of_a_dictionary(keys: U8) -> None:
    expected = sorted({key.tobytes(): row for row, key in enumerate(keys)}.values())
    rows = last_rows(keys)
    assert list(range(len(keys)) if rows is None else rows) == expected


@given(keys=key_columns(), split=st.integers(0, 60))
def test_membership_is_that_of_a_set(keys: U8, split: int) -> None:
    held, asked = keys[:split], keys
    expected = [key.tobytes() in {k.tobytes() for k in held} for key in asked]
    assert list(KeySet(held).holds(asked)) == expected


def test_hash_depends_on_every_byte(request: pytest.FixtureRequest) -> None:
    if "colliding" in request.node.name:
        return
    for size in (1, 7, 8, 9, 31):
        rows = np.zeros((size * 8 + 1, size), np.uint8)
        for bit in range(size * 8):
            rows[bit, bit // 8] = 1 << (bit % 8)
        assert len(set(hash_rows(rows).tolist())) == len(rows)


Step = tuple[str, dict[int, int]]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["note", "scan"]),
        st.dictionaries(st.integers(0, 12), st.integers(0, 3), max_size=9),
    ),
    max_size=12,
)


@given(steps=STEPS)
def test_differences_are_those_of_dictionaries(steps: list[Step]) -> None:
    """``note`` feeds updates (and deletes for value 0); ``scan`` compares with a whole map."""
    table, fold = Fingerprints(2), dict[int, int]()
    for kind, entries in steps:
        if kind == "note":
            table.note(batch_of(entries))
            fold |= entries
            fold = {k: v for k, v in fold.items() if v}
        else:
            held = {k: v for k, v in entries.items() if v}
            found = differences(table, wide(held), values_of(held))
            changed = {k: v for k, v in held.items() if fold.get(k) != v}
            assert narrow(found.updated_keys, found.updated_values) == changed
            gone = narrow(found.deleted_keys, found.deleted_keys)
            assert set(gone) == set(fold) - set(held)
            fold = held
        assert len(table) == len(fold)


def test_keys_in_doubt_are_left_for_the_next_scan() -> None:
    table = Fingerprints(2)
    table.note(batch_of({1: 1, 2: 1}))
    now = {1: 2, 3: 3}
    doubtful = KeySet(wide({1: 0, 2: 0}))
    found = differences(table, wide(now), values_of(now), doubtful=doubtful)
    assert narrow(found.updated_keys, found.updated_values) == {3: 3}
    assert not len(found.deleted_keys)
    assert found.deferred == 2
    found = differences(table, wide(now), values_of(now))
    assert narrow(found.updated_keys, found.updated_values) == {1: 2}
    assert len(found.deleted_keys) == 1


def batch_of(entries: dict[int, int]) -> DeltaBatch:
    batch = DeltaBatch.of_entries(Op.UPDATE, wide(entries), values_of(entries), 1)
    ops = np.array([Op.UPDATE if v else Op.DELETE for v in entries.values()], np.uint8)
    return DeltaBatch(
        ops, batch.keys, batch.values, batch.entered, batch.left, batch.writers, batch.cause
    )


def wide(entries: dict[int, int]) -> U8:
    return np.array(list(entries), np.uint16).view(np.uint8).reshape(-1, 2)


def values_of(entries: dict[int, int]) -> U8:
    return np.array(list(entries.values()), np.uint8).reshape(-1, 1)


def narrow(keys: U8, values: U8) -> dict[int, int]:
    flat = np.ascontiguousarray(keys).view(np.uint16).ravel()
    return dict(zip(flat.tolist(), values[:, 0].tolist(), strict=True))


@pytest.mark.parametrize("different", [1, 701, 30_011, 1 << 40])
def test_last_rows_of_a_large_batch(different: int) -> None:
    numbers = np.random.default_rng(5).integers(0, different, 30_011, np.uint64)
    keys = np.zeros((len(numbers), 12), np.uint8)
    keys[:, 4:] = numbers.view(np.uint8).reshape(-1, 8)
    expected = sorted({int(number): row for row, number in enumerate(numbers)}.values())
    rows = last_rows(keys)
    assert list(range(len(keys)) if rows is None else rows) == expected
