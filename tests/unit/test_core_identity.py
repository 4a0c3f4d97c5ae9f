"""Which keys are one entry, and what an eviction means."""

from __future__ import annotations

import ipaddress

import numpy as np
import pytest

from bridge.core.identity import Identity, canonical_prefixes
from bridge.model import U8, DeltaBatch, Evict, Op


def prefixes(*texts: str) -> U8:
    rows = []
    for text in texts:
        address, _, length = text.partition("/")
        rows.append(int(length).to_bytes(4, "little") + ipaddress.ip_address(address).packed)
    return np.frombuffer(b"".join(rows), np.uint8).reshape(len(rows), -1)


@pytest.mark.parametrize(
    ("address", "length"),
    [("10.1.2.3", n) for n in (0, 1, 7, 8, 9, 15, 16, 23, 31, 32)]
    + [("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", n) for n in (0, 3, 32, 33, 64, 127, 128)],
)
def test_bits_behind_the_prefix_are_cleared(address: str, length: int) -> None:
    network = ipaddress.ip_network(f"{address}/{length}", strict=False)
    found = canonical_prefixes(prefixes(f"{address}/{length}"))
    assert found.tobytes() == prefixes(str(network)).tobytes()


def test_rows_do_not_touch_each_other() -> None:
    given = prefixes("10.1.2.3/8", "10.1.2.3/32", "10.1.2.3/0", "255.255.255.255/13")
    before = given.copy()
    found = canonical_prefixes(given)
    wanted = prefixes("10.0.0.0/8", "10.1.2.3/32", "0.0.0.0/0", "255.248.0.0/13")
    assert np.array_equal(found, wanted)
    assert np.array_equal(given, before)


def test_a_length_beyond_the_address_leaves_it() -> None:
    given = prefixes("10.1.2.3/77")
    assert np.array_equal(canonical_prefixes(given), given)


def test_no_rows() -> None:
    assert canonical_prefixes(np.zeros((0, 8), np.uint8)).shape == (0, 8)


def batch(*ops: Op) -> DeltaBatch:
    n = len(ops)
    whole = DeltaBatch.of_entries(
        Op.UPDATE, np.zeros((n, 4), np.uint8), np.zeros((n, 8), np.uint8), 7
    )
    return DeltaBatch(
        np.array(ops, np.uint8), whole.keys, whole.values, whole.entered, whole.left, whole.writers
    )


def test_evictions_are_deletes_only_where_they_are_to_be() -> None:
    changes = batch(Op.UPDATE, Op.EVICT, Op.DELETE, Op.EVICT)
    local = Identity(evicts=True)
    assert local.batch(changes).ops.tolist() == changes.ops.tolist()
    assert not local.missing_means_deleted
    everywhere = Identity(evicts=True, policy=Evict.REPLICATE)
    assert everywhere.batch(changes).ops.tolist() == [1, 2, 2, 2]
    assert everywhere.missing_means_deleted
    assert Identity(policy=Evict.LOCAL).missing_means_deleted  # a map that never evicts
