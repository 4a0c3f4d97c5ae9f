"""A snapshot under a replica with changes of its own, and what leaves the map with it."""

from __future__ import annotations

import numpy as np

from bridge.apply.loading import Load
from bridge.core.digest import rows_digest
from bridge.core.fingerprints import Fingerprints
from bridge.core.replica import Replica
from bridge.model import U8, Delta, DeltaBatch, Op, Origin
from tests.core_kit import compare_whole

OWN, OTHER = Origin("c", "m", "own", 3), Origin("c", "m", "other", 1)


def keys(*numbers: int) -> U8:
    return np.array(numbers, "<u4").view(np.uint8).reshape(-1, 4)


def batch(*numbers: int, value: int, began: int = 10) -> DeltaBatch:
    values = np.full((len(numbers), 4), value, np.uint8)
    return DeltaBatch.of_entries(Op.UPDATE, keys(*numbers), values, began + 1, began=began)


def numbers(found: DeltaBatch | None) -> list[int]:
    if found is None:
        return []
    return sorted(np.ascontiguousarray(found.keys).view("<u4")[:, 0].tolist())


def replica() -> Replica:
    return Replica(OWN, publishes=True, applies=True, fingerprints=Fingerprints(4))


def test_pending_keys_are_not_written_and_what_the_snapshot_holds_is_pending_no_more() -> None:
    judge = replica()
    judge.capture(batch(1, 2, 3, value=1))  # own changes 1 to 3
    judge.capture(batch(4, value=1))  # and 4
    judge.jump(stored=2)
    assert numbers(judge.load(batch(1, 2, 3, 4, 5, value=9)).writes) == [1, 2, 5]
    assert judge.pending_rows == 2


def test_a_jump_keeps_doubts_of_pending_keys_only() -> None:
    judge = replica()
    written = judge.judge([Delta(OTHER, 1, batch(1, 2, value=5))])
    judge.capture(batch(1, 2, value=6))  # while the write runs: in doubt
    assert written.touch is not None
    written.touch.end = 50
    assert judge.dirty_keys == 2
    judge.jump(stored=1)
    assert judge.dirty_keys == 1, "key 1 takes what the snapshot says"
    judge.jump(stored=2)
    assert judge.dirty_keys == 0


def test_a_local_write_that_overlaps_the_load_is_in_doubt() -> None:
    judge = replica()
    judge.jump(0)
    verdict = judge.load(batch(1, 2, value=9))
    assert verdict.touch is not None
    verdict.touch.end = 30
    judge.capture(batch(2, value=3, began=25))
    assert judge.dirty_keys == 1
    again = judge.judge([Delta(OWN, 1, batch(2, value=3))])
    assert numbers(again.writes) == [2], "its own message writes it once more"


def test_what_comes_behind_a_snapshot_has_missed_nothing() -> None:
    judge = replica()
    assert judge.judge([Delta(OTHER, 7, batch(1, value=1))]).missed == 6
    judge.jump(0)
    assert judge.judge([Delta(OTHER, 100, batch(1, value=1))]).missed == 0
    assert judge.judge([Delta(OTHER, 103, batch(1, value=1))]).missed == 2


def test_a_map_that_rejoins_learns_from_a_snapshot_and_writes_nothing() -> None:
    judge = replica()
    judge.rejoin(5)
    judge.jump(0, learns=True)
    assert judge.load(batch(1, 2, 3, value=9)).writes is None
    judge.judge([Delta(OTHER, 1, batch(2, value=8))], [6])
    assert numbers(judge.rejoined().writes) == [2]
    judge.begin_scan(1 << 40)
    values = np.array([[9] * 4, [8] * 4, [4] * 4], np.uint8)
    found = compare_whole(judge, keys(1, 3, 4), values)
    assert numbers(DeltaBatch.of_entries(Op.UPDATE, found.updated_keys, values[:2], 0)) == [3, 4]
    assert (len(found.deleted_keys), found.deferred) == (0, 1), "key 2 is just being written"


def load(before: U8 | None) -> Load:
    return Load(
        position=5,
        stored=0,
        value_size=4,
        keys_now=None if before is None else lambda: before,
        wake=lambda: None,
    )


def test_strangers_are_what_was_there_before_and_no_part_holds() -> None:
    one = load(keys(1, 2, 3, 4))
    one.begin()
    one.wrote(batch(2, 9, value=1))
    one.wrote(batch(4, value=1))
    assert numbers(one.strangers()) == [1, 3]
    assert one.parts == 2
    for nothing in (load(None), load(keys())):
        nothing.begin()
        nothing.wrote(batch(2, value=1))
        assert nothing.strangers() is None
    all_of_it = load(keys(7))
    all_of_it.begin()
    assert numbers(all_of_it.strangers()) == [7], "a snapshot of an empty map"


def test_the_digest_is_of_the_set_of_rows() -> None:
    whole, parts = batch(1, 2, 3, value=7), (batch(3, value=7), batch(2, 1, value=7))
    assert rows_digest(whole) == sum(map(rows_digest, parts)) % (1 << 64)
    others = (batch(1, 2, value=7), batch(1, 2, 4, value=7), batch(1, 2, 3, value=8))
    assert rows_digest(whole) not in {rows_digest(other) for other in others}
    swapped = DeltaBatch.of_entries(Op.UPDATE, whole.values, whole.keys, 0)
    assert rows_digest(swapped) != rows_digest(whole)


def test_own_keys_that_the_snapshot_lacks_are_deleted_from_a_new_map_too() -> None:
    judge = replica()
    judge.capture(batch(1, 2, value=1))  # own changes 1 and 2, both stored
    judge.capture(batch(3, value=1))
    one = load(None)
    one.begin()
    one.settles(judge.jump(stored=2))
    one.wrote(batch(2, value=7))
    assert numbers(one.strangers()) == [1], "somebody deleted it behind the own change"
    evicting = load(None)
    evicting.complete = False
    evicting.settles(keys(1))
    assert numbers(evicting.strangers()) == []


def test_own_messages_that_come_once_more_behind_a_snapshot_are_written() -> None:
    judge = replica()
    judge.capture(batch(1, value=1))
    own = Delta(OWN, 1, batch(1, value=1))
    assert judge.judge([own]).writes is None
    judge.jump(stored=0)  # the snapshot is older than that message
    assert numbers(judge.load(batch(1, value=9)).writes) == [1]
    assert numbers(judge.judge([own]).writes) == [1]
    judge.capture(batch(2, value=2))
    assert judge.judge([Delta(OWN, 2, batch(2, value=2))]).writes is None


def test_a_map_that_lived_on_and_meets_a_hole_is_loaded() -> None:
    judge = replica()
    judge.rejoin(5)
    judge.judge([Delta(OTHER, 1, batch(2, 3, value=8))], [6])
    judge.jump(0)
    assert numbers(judge.load(batch(1, 2, value=9)).writes) == [1, 2]
    judge.begin_scan(1 << 40)
    found = compare_whole(judge, keys(1, 2), np.full((2, 4), 9, np.uint8))
    assert len(found.deleted_keys) == 0, "key 3 was noted, and is not what the snapshot says"
