"""What a map that lived on takes from the stream, and what it keeps."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.core import rejoin
from bridge.core.fingerprints import Fingerprints
from bridge.core.replica import Replica
from bridge.model import U8, Delta, DeltaBatch, Op, Origin
from tests.core_kit import compare_whole

OWN, BEFORE, OTHER = (
    Origin("c", "m", "own", 3),
    Origin("c", "m", "own", 2),
    Origin("c", "m", "other", 1),
)


def keys(*numbers: int) -> U8:
    return np.array(numbers, "<u4").view(np.uint8).reshape(-1, 4)


def batch(*numbers: int, value: int, began: int = 10, op: Op = Op.UPDATE) -> DeltaBatch:
    values = np.full((len(numbers), 4), value if op == Op.UPDATE else 0, np.uint8)
    return DeltaBatch.of_entries(op, keys(*numbers), values, began + 1, began=began)


def rows(found: DeltaBatch | None) -> dict[int, int]:
    if found is None:
        return {}
    numbers = np.ascontiguousarray(found.keys).view("<u4")[:, 0]
    return {int(n): int(v[0]) for n, v in zip(numbers, found.values, strict=True)}


def restarted(saved: int) -> Replica:
    judge = Replica(OWN, publishes=True, applies=True, fingerprints=Fingerprints(4))
    judge.rejoin(saved)
    return judge


def test_only_keys_that_others_changed_last_and_since_are_written() -> None:
    judge = restarted(2)
    history = [
        Delta(BEFORE, 1, batch(1, 2, 3, 4, value=1)),
        Delta(OTHER, 1, batch(1, value=2)),  # applied before the bridge ended
        Delta(OTHER, 2, batch(2, 3, value=3)),
        Delta(BEFORE, 5, batch(3, value=4)),  # the own one came later: the map holds it, or newer
    ]
    verdict = judge.judge(history, [1, 2, 3, 4])
    assert verdict.writes is None, "nothing may be written before the end of the stream is reached"
    assert rows(judge.rejoined().writes) == {2: 3}


def test_what_the_map_holds_beyond_the_stream_is_found_by_a_whole_scan() -> None:
    judge = restarted(1)
    judge.judge([Delta(BEFORE, 1, batch(1, 2, 3, value=1))], [1])
    assert judge.rejoined().writes is None
    judge.begin_scan(100)
    values = np.array([[9] * 4, [1] * 4], np.uint8)
    found = compare_whole(judge, keys(1, 2), values)
    assert found.updated_keys.tolist() == keys(1).tolist(), "changed and never stored"
    assert found.deleted_keys.tolist() == keys(3).tolist(), "deleted and never stored"


def test_a_change_captured_meanwhile_is_not_overwritten() -> None:
    judge = restarted(0)
    judge.judge([Delta(OTHER, 1, batch(1, 2, value=2))], [1])
    judge.capture(batch(1, value=7, began=50))
    assert rows(judge.rejoined().writes) == {2: 2}


def test_an_own_change_that_came_back_ends_what_others_wrote_before_it() -> None:
    judge = restarted(0)
    judge.judge([Delta(OTHER, 1, batch(1, 2, value=2))], [1])
    judge.capture(batch(1, value=7, began=50))
    judge.judge([Delta(OWN, 1, batch(1, value=7, began=50))], [2])
    assert rows(judge.rejoined().writes) == {2: 2}
    later = judge.judge([Delta(OTHER, 3, batch(1, value=8))], [3])
    assert rows(later.writes) == {1: 8}, "after that the ordinary rules hold"


@pytest.mark.parametrize("seed", range(20))
def test_folding_in_between_changes_nothing(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejoin, "_UNFOLDED_ROWS_MAX", 8)
    chance = np.random.default_rng(seed)
    collected = rejoin.Rejoin(3)
    last: dict[int, tuple[int, bool]] = {}
    for sequence in range(60):
        numbers = chance.integers(0, 12, chance.integers(1, 4)).tolist()
        foreign = bool(chance.integers(0, 2))
        collected.note(sequence, batch(*numbers, value=sequence), foreign=foreign)
        if sequence > 3:
            last |= dict.fromkeys(numbers, (sequence, foreign))
    expected = {number: value for number, (value, foreign) in last.items() if foreign}
    assert rows(collected.finish()) == expected
    assert collected.finish() is None
