"""Comparison of two real maps, and of entries against a plain model."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from bridge.demo.tracker import Tracker
from bridge.errors import PrivilegeError
from bridge.kernel.maps import KernelMap, MapType, create_map, open_pin
from bridge.model import U8
from bridge.rig.claim import Claim
from bridge.rig.compare import (
    EXAMPLES_MAX,
    CompareError,
    compare,
    compare_entries,
)

ENTRIES = 4001


@pytest.fixture
def pair() -> Iterator[tuple[KernelMap, KernelMap]]:
    """Two nodes' maps of the tracker, filled with the same entries in different order."""
    try:
        claim = Claim.take()
    except PrivilegeError as error:
        pytest.skip(str(error))
    with (
        claim,
        Tracker(claim, ENTRIES, ("a", "b")) as tracker,
        open_pin(tracker.pins["a"].map) as source,
        open_pin(tracker.pins["b"].map) as replica,
    ):
        keys, values = entries(ENTRIES)
        assert source.update_batch(keys, values).done == ENTRIES
        order = np.random.default_rng(7).permutation(ENTRIES)
        assert replica.update_batch(keys[order], values[order]).done == ENTRIES
        yield source, replica


def entries(n: int) -> tuple[U8, U8]:
    """``n`` different keys with zeros at their end, where text comparisons would go wrong."""
    rng = np.random.default_rng(n)
    keys = rng.integers(0, 256, (n, 40), np.uint8)
    keys[:, 30:] = 0
    keys[:, :4] = np.arange(n, dtype=np.uint32)[:, None].view(np.uint8)
    return keys, rng.integers(0, 256, (n, 40), np.uint8)


def test_equal_maps(pair: tuple[KernelMap, KernelMap]) -> None:
    result = compare(*pair)
    assert result.equal
    assert result.examples == ()
    assert str(result) == "source 4,001 entries, replica 4,001: 0 missing, 0 wrong, 0 extra"


def test_planted_differences_are_found(pair: tuple[KernelMap, KernelMap]) -> None:
    source, replica = pair
    keys, values = entries(ENTRIES)
    assert replica.delete_batch(keys[:7]).done == 7
    wrong = values[100:111].copy()
    wrong[:, 39] ^= 1  # the last bit of the last byte
    assert replica.update_batch(keys[100:111], wrong).done == 11
    strange = keys[:13].copy()
    strange[:, 39] = 1
    assert replica.update_batch(strange, values[:13]).done == 13

    result = compare(source, replica)

    assert (result.source_entries, result.replica_entries) == (4001, 4007)
    assert (result.missing, result.wrong, result.extra) == (7, 11, 13)
    assert not result.equal
    by_kind = {
        k: [e for e in result.examples if e.kind == k] for k in ("missing", "wrong", "extra")
    }
    assert [len(found) for found in by_kind.values()] == [EXAMPLES_MAX] * 3
    assert {e.key for e in by_kind["missing"]} < {key.tobytes() for key in keys[:7]}
    assert all(e.replica_value is None for e in by_kind["missing"])
    for example in by_kind["wrong"]:
        assert example.source_value is not None
        assert example.replica_value is not None
        assert example.source_value[:39] == example.replica_value[:39]
        assert example.source_value[39] ^ example.replica_value[39] == 1
    assert {e.key for e in by_kind["extra"]} < {key.tobytes() for key in strange}


def test_empty_replica(pair: tuple[KernelMap, KernelMap]) -> None:
    source, replica = pair
    assert replica.delete_batch(entries(ENTRIES)[0]).done == ENTRIES
    result = compare(source, replica)
    assert (result.missing, result.wrong, result.extra) == (ENTRIES, 0, 0)
    assert compare(replica, source).extra == ENTRIES


def test_other_widths_are_refused(pair: tuple[KernelMap, KernelMap]) -> None:
    with (
        create_map(MapType.HASH, 40, 48, 16, name="other") as other,
        pytest.raises(CompareError, match=r"sizes differ \(got 40 \+ 40 and 40 \+ 48\)"),
    ):
        compare(pair[0], other)


_SIDE = st.dictionaries(st.binary(min_size=3, max_size=3), st.binary(min_size=2, max_size=2))


@settings(max_examples=200, deadline=None)
@given(_SIDE, _SIDE, st.booleans())
def test_against_a_model(
    source: dict[bytes, bytes], replica: dict[bytes, bytes], share: bool
) -> None:
    if share:
        replica = {**source, **replica}
    result = compare_entries(*rows(source), *rows(replica))
    both = source.keys() & replica.keys()
    assert result.missing == len(source.keys() - replica.keys())
    assert result.extra == len(replica.keys() - source.keys())
    assert result.wrong == sum(source[key] != replica[key] for key in both)


def rows(side: dict[bytes, bytes]) -> tuple[U8, U8]:
    keys = np.frombuffer(b"".join(side), np.uint8).reshape(-1, 3)
    return keys, np.frombuffer(b"".join(side.values()), np.uint8).reshape(-1, 2)


def test_a_key_twice_is_refused() -> None:
    keys = np.zeros((2, 4), np.uint8)
    with pytest.raises(ValueError, match="one occurs twice"):
        compare_entries(keys, keys, keys[:1], keys[:1])
