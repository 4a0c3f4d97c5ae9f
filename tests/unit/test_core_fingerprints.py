"""The fold in ranges: equal to a dictionary, slice by slice, while changes go on."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.core import fingerprints as module, foldpart, scanrows
from bridge.core.fingerprints import Differences, Fingerprints
from bridge.core.keys import hash_rows
from bridge.model import U8, U64, DeltaBatch, Op
from tests.core_kit import differences

KEYS = 1_009


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranges, slices and queues so small that a thousand keys need many of each."""
    monkeypatch.setattr(module, "_UNSORTED_ROWS_MAX", 61)
    monkeypatch.setattr(module, "_WAITING_ROWS", 7)
    monkeypatch.setattr(scanrows, "_SLICE_ROWS", 31)
    monkeypatch.setattr(scanrows, "_JOINED_ROWS", 211)
    monkeypatch.setattr(foldpart, "ROWS_MAX", 43)


def keys_of(numbers: list[int]) -> U8:
    return np.array(numbers, np.uint32).view(np.uint8).reshape(-1, 4)


def values_of(numbers: list[int]) -> U8:
    return np.array(numbers, np.uint16).view(np.uint8).reshape(-1, 2)


def note(table: Fingerprints, fold: dict[int, int], changes: dict[int, int]) -> None:
    """Value 0: a delete."""
    keys, values = keys_of(list(changes)), values_of(list(changes.values()))
    batch = DeltaBatch.of_entries(Op.UPDATE, keys, values, 1)
    ops = np.array([Op.UPDATE if value else Op.DELETE for value in changes.values()], np.uint8)
    table.note(DeltaBatch(ops, keys, values, batch.entered, batch.left, batch.writers, batch.cause))
    fold |= changes
    for key in [key for key, value in changes.items() if not value]:
        del fold[key]


def told(found: list[Differences]) -> tuple[dict[int, int], set[int]]:
    updated: dict[int, int] = {}
    deleted: set[int] = set()
    for one in found:
        keys = np.ascontiguousarray(one.updated_keys).view(np.uint32).ravel().tolist()
        values = np.ascontiguousarray(one.updated_values).view(np.uint16).ravel().tolist()
        assert updated.keys().isdisjoint(keys)
        updated |= dict(zip(keys, values, strict=True))
        deleted |= set(np.ascontiguousarray(one.deleted_keys).view(np.uint32).ravel().tolist())
    return updated, deleted


def chunks_of(held: dict[int, int]) -> list[tuple[U8, U8]]:
    numbers = list(held)
    parts = [numbers[at : at + 97] for at in range(0, len(numbers), 97)]
    return [(keys_of(part), values_of([held[key] for key in part])) for part in parts]


def compared(table: Fingerprints, held: dict[int, int]) -> list[Differences]:
    """What the open scan finds when it reads all this at once."""
    sifted = [table.sift(table.chunk(keys, values)) for keys, values in chunks_of(held)]
    return [table.compare(piece, doubtful=None) for piece in table.cut(sifted, 2)]


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(7))
def test_slices_find_what_dictionaries_find(seed: int) -> None:
    rng = np.random.default_rng(seed)
    table, fold = Fingerprints(4), dict[int, int]()
    for _ in range(5):
        for _ in range(int(rng.integers(0, 40))):
            numbers = rng.integers(0, KEYS, 53).tolist()
            note(table, fold, {key: int(rng.integers(0, 9)) for key in numbers})
        held = {k: v for k, v in fold.items() if rng.random() > 0.1}
        held |= {int(k): 9 + int(k) % 5 for k in rng.integers(0, 2 * KEYS, 31)}
        table.begin()
        found, late = [], set[int]()

        def change_some(late: set[int] = late, fold: dict[int, int] = fold) -> None:
            """Changes go on meanwhile; those that come before their slice are left out."""
            changes = {int(k): int(rng.integers(0, 9)) for k in rng.integers(0, 2 * KEYS, 3)}
            late.update(changes)
            note(table, fold, changes)

        sifted = []
        for keys, values in chunks_of(held):
            sifted.append(table.sift(table.chunk(keys, values)))
            change_some()
        for piece in list(table.cut(sifted, 2)):
            found.append(table.compare(piece, doubtful=None))
            change_some()
        table.end()
        updated, deleted = told(found)
        steady = set(range(2 * KEYS)) - late
        before = {k: v for k, v in fold.items() if k in steady}
        wanted = {k: v for k, v in held.items() if k in steady and before.get(k) != v}
        assert {k: v for k, v in updated.items() if k in steady} == wanted
        assert deleted & steady == before.keys() - held.keys()
        for key, value in updated.items():
            if key in steady:
                fold[key] = value
        for key in deleted & steady:
            del fold[key]
        # Of keys that changed meanwhile nobody can say; the next scan, of what is there, can.
        truth = dict(fold)
        for key in late:
            truth.pop(key, None)
        table.begin()
        found = compared(table, truth)
        table.end()
        updated, deleted = told(found)
        assert updated.keys() | deleted <= late
        fold = truth
        assert len(table) == len(fold)


def test_a_change_after_the_scan_began_is_left_out_whatever_came_later() -> None:
    """More changes than any window remembers: an old value that the scan read must not come back"""
    table, fold = Fingerprints(4), dict[int, int]()
    note(table, fold, {1: 1, 2: 1, 3: 1})
    table.begin()
    scanned = {1: 1, 2: 1, 3: 1, 4: 4}
    note(table, fold, {1: 2, 2: 0})  # written, and deleted, after the scan had read them
    for at in range(0, 200_000, 50_000):
        note(table, fold, {10 + number: 7 for number in range(at, at + 50_000)})
    found = compared(table, scanned)
    assert told(found) == ({4: 4}, set())
    assert sum(one.deferred for one in found) == 200_002


def test_changes_that_wait_to_be_merged_count_when_a_chunk_is_sifted() -> None:
    """The map has the value before the last that the stream knows: the one in between was lost."""
    table, fold = Fingerprints(4), dict[int, int]()
    note(table, fold, {1: 1, 2: 1})
    assert len(table) == 2  # merged
    note(table, fold, {1: 2, 2: 0})
    table.begin()
    assert told(compared(table, {1: 1, 2: 1})) == ({1: 1, 2: 1}, set())


def test_a_scan_that_finds_nothing_new_holds_nothing() -> None:
    table, fold = Fingerprints(4), dict[int, int]()
    note(table, fold, dict.fromkeys(range(1, KEYS), 3))
    for held in (fold, fold | {7: 4}):
        table.begin()
        sifted = [table.sift(table.chunk(*chunk)) for chunk in chunks_of(held)]
        table.end()
        assert sum(map(len, sifted)) == len(held.items() - fold.items())


def test_bytes_that_do_not_count_make_no_difference() -> None:
    table, fold = Fingerprints(4, np.array([255, 0], np.uint8)), dict[int, int]()
    note(table, fold, {1: 0x0101, 2: 0x0101})
    now = {1: 0x0901, 2: 0x0902}
    table.begin()
    found = differences(table, keys_of(list(now)), values_of(list(now.values())))
    assert told([found]) == ({2: 0x0902}, set())


@pytest.mark.usefixtures("small")
def test_keys_that_share_a_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    table, fold = Fingerprints(4), dict[int, int]()
    poor_seed = table._seed

    def poor(rows: U8, seed: int = poor_seed) -> U64:
        hashes = hash_rows(rows, seed)
        of_keys = rows.shape[1] == 4  # values must stay apart
        return hashes & np.uint64(0xFF) if of_keys and seed == poor_seed else hashes

    monkeypatch.setattr(module, "hash_rows", poor)
    for at in range(0, KEYS, 100):
        note(table, fold, {key: key % 100 + 1 for key in range(at, at + 100)})
    assert len(table) == len(fold)
    assert table._seed != poor_seed
    held = dict(fold) | {3: 999}
    del held[5]
    found = differences(table, keys_of(list(held)), values_of(list(held.values())))
    assert told([found]) == ({3: 999}, {5})
