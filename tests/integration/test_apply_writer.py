"""Folded batches into real maps: order, absent keys, a full map, sizes."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.apply.writer import MapWriter, SizesDifferError
from bridge.kernel.features import Capability
from bridge.kernel.maps import KernelMap, MapFlag, MapType, create_map
from bridge.model import KEY_SIZE_MAX, DeltaBatch, Op
from tests.integration.kernel_support import needs, rows_of, unique_name
from tests.node_kit import content

pytestmark = needs(Capability.CAP_SYS_ADMIN)


def batch(op: Op, numbers: range, value: int = 0, *, key: int = 8, size: int = 8) -> DeltaBatch:
    keys = rows_of(numbers, key)
    return DeltaBatch.of_entries(op, keys, np.full((len(keys), size), value, np.uint8), 1)


def mixed(*batches: DeltaBatch, seed: int = 3) -> DeltaBatch:
    whole = DeltaBatch.concatenate(batches)
    return whole.take(np.random.default_rng(seed).permutation(len(whole)))


def new_map(entries: int = 64, *, key: int = 8, size: int = 8, flags: int = 0) -> KernelMap:
    return create_map(MapType.HASH, key, size, entries, name=unique_name("w"), flags=flags)


def test_updates_deletes_and_absent_keys_mixed() -> None:
    with new_map(4096) as target:
        writer = MapWriter(target)
        assert writer.write(batch(Op.UPDATE, range(1009), 1)).updated == 1009
        written = writer.write(
            mixed(batch(Op.DELETE, range(500, 1500)), batch(Op.UPDATE, range(300), 2))
        )
        assert (written.updated, written.deleted, written.absent) == (300, 509, 491)
        assert (written.full, written.blocked, written.error) == (None, None, None)
        held = content(target)
        assert len(held) == 500
        assert sum(value == bytes([2] * 8) for value in held.values()) == 300


def test_evictions_are_not_written() -> None:
    with new_map() as target:
        writer = MapWriter(target)
        writer.write(batch(Op.UPDATE, range(7), 1))
        written = writer.write(mixed(batch(Op.EVICT, range(5)), batch(Op.UPDATE, range(5, 7), 2)))
        assert (written.updated, written.deleted, written.absent) == (2, 0, 0)
        assert len(content(target)) == 7
        assert writer.write(batch(Op.EVICT, range(7))).deleted == 0


def test_deletes_make_room_before_updates() -> None:
    with new_map(16) as target:
        writer = MapWriter(target)
        writer.write(batch(Op.UPDATE, range(16), 1))
        written = writer.write(
            DeltaBatch.concatenate(
                [batch(Op.UPDATE, range(100, 105), 2), batch(Op.DELETE, range(5))]
            )
        )
        assert (written.updated, written.deleted, written.full) == (5, 5, None)


def test_a_full_map_refuses_new_keys_and_takes_the_rest() -> None:
    with new_map(16, flags=MapFlag.NO_PREALLOC) as target:
        writer = MapWriter(target)
        writer.write(batch(Op.UPDATE, range(16), 1))
        wanted = mixed(batch(Op.UPDATE, range(16), 2), batch(Op.UPDATE, range(100, 107), 2))
        written = writer.write(wanted)
        assert written.updated == 16
        assert written.full is not None
        assert {k.tobytes() for k in written.full.keys} == {
            k.tobytes() for k in rows_of(range(100, 107), 8)
        }
        assert set(content(target).values()) == {bytes([2] * 8)}
        writer.write(batch(Op.DELETE, range(7)))
        assert writer.write(written.full).updated == 7


def test_a_map_that_user_space_may_not_write_answers_what_was_not_written() -> None:
    with new_map(flags=MapFlag.RDONLY) as target:
        wanted = DeltaBatch.concatenate(
            [batch(Op.DELETE, range(2)), batch(Op.UPDATE, range(2, 7), 1)]
        )
        written = MapWriter(target).write(wanted)
        assert written.error is not None
        assert "EPERM" in str(written.error)
        assert target.info.name in str(written.error)
        assert written.blocked is not None
        assert len(written.blocked) == 7
        assert (written.updated, written.deleted) == (0, 0)


@pytest.mark.parametrize(("key", "size"), [(1, 1), (3, 5), (KEY_SIZE_MAX, 64), (4, 65_536)])
def test_narrow_and_wide_entries(key: int, size: int) -> None:
    with new_map(32, key=key, size=size) as target:
        writer = MapWriter(target)
        numbers = range(17)
        writer.write(batch(Op.UPDATE, numbers, 3, key=key, size=size))
        writer.write(
            mixed(
                batch(Op.DELETE, range(5), key=key, size=size),
                batch(Op.UPDATE, range(5, 17), 4, key=key, size=size),
            )
        )
        assert content(target) == {
            k.tobytes(): bytes([4]) * size for k in rows_of(range(5, 17), key)
        }


def test_other_sizes_are_refused_naming_both() -> None:
    with new_map() as target:
        writer = MapWriter(target)
        writer.check_sizes("node a", 8, 8)
        with pytest.raises(SizesDifferError, match=r"here key 8 and value 8 .* key 8 and value 4"):
            writer.check_sizes("node a", 8, 4)
