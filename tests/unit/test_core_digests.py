"""Digests: they depend on the entries alone, and only differences that stay are drift."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from bridge.core.digests import Digest, Drift, buckets_of, differing, lasting, most_held

SEED, BUCKETS = 12_345, 61


def entries(count: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray]:
    chance = np.random.default_rng(seed)
    keys = np.arange(count, dtype="<u8").view(np.uint8).reshape(-1, 8)
    return keys, chance.integers(0, 256, (count, 13), np.uint8)


def digest(keys: np.ndarray, values: np.ndarray, *, chunk: int = 1009) -> Digest:
    made = Digest(SEED, BUCKETS)
    for at in range(0, len(keys), chunk):
        made.add(keys[at : at + chunk], values[at : at + chunk])
    return made


def test_neither_order_nor_chunks_count() -> None:
    keys, values = entries(5_003)
    order = np.random.default_rng(2).permutation(len(keys))
    other = digest(keys[order], values[order], chunk=97)
    assert not differing([digest(keys, values), other]).any()
    assert int(other.counts.sum()) == 5_003


@pytest.mark.parametrize("fault", ["value", "missing", "swapped"])
def test_one_entry_is_found_in_its_bucket(fault: str) -> None:
    keys, values = entries(5_003)
    other_keys, other_values = keys.copy(), values.copy()
    rows = [1_009]
    if fault == "value":
        other_values[1_009, 12] ^= 1
    elif fault == "missing":
        other_keys, other_values = np.delete(keys, 1_009, 0), np.delete(values, 1_009, 0)
    else:
        rows = [1_009, 17]
        other_values[rows] = values[rows[::-1]]
    found = differing([digest(keys, values), digest(other_keys, other_values)])
    assert set(np.flatnonzero(found)) == set(buckets_of(keys[rows], SEED, BUCKETS))


def test_another_process_answers_the_same() -> None:
    keys, values = entries(101)
    program = (
        "import numpy as np; from tests.unit.test_core_digests import digest, entries;"
        "print(digest(*entries(101)).sums.tolist())"
    )
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    assert answer.stdout.decode().strip() == str(digest(keys, values).sums.tolist())


def test_only_what_stays_is_drift() -> None:
    first = [{b"a": b"1", b"b": b"1", b"c": b"1"}, {b"a": b"2", b"b": b"2", b"d": b"1"}]
    second = [
        {b"a": b"1", b"b": b"3", b"c": b"1"},
        {b"a": b"2", b"b": b"2", b"c": b"1", b"d": b"1"},
    ]
    found = lasting([first, second])
    assert found == [Drift(b"a", (b"1", b"2")), Drift(b"d", (None, b"1"))]


def test_the_value_that_most_maps_hold() -> None:
    assert most_held([b"1", b"2", b"2"]) == 1
    assert most_held([None, b"2", None]) == 0
    assert most_held([b"1", b"2"]) == 0


def test_what_an_lru_map_lacks_is_no_drift() -> None:
    some = {b"evicted": b"1", b"differs": b"1", b"same": b"3"}
    other = {b"differs": b"2", b"same": b"3"}
    readings = [[some, other, {}]] * 3
    assert [drift.key for drift in lasting(readings)] == [b"differs", b"evicted", b"same"]
    (drift,) = lasting(readings, evicts=True)
    assert drift == Drift(b"differs", (b"1", b"2", None))
    assert most_held((None, None, b"1"), evicts=True) == 2
