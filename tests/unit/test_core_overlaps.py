"""Which own changes overlapped in time, and which did not."""

from __future__ import annotations

import numpy as np
import pytest

from bridge.core.overlaps import ROWS_MAX, Overlaps
from bridge.model import U8, U64


def keys(*numbers: int) -> U8:
    return np.array(numbers, np.uint32).view(np.uint8).reshape(-1, 4)


def times(*numbers: int) -> U64:
    return np.array(numbers, np.uint64)


def doubts(overlaps: Overlaps, *changes: tuple[int, int, int]) -> list[int]:
    """Of (key, entered, left), the rows in doubt."""
    columns = tuple(zip(*changes, strict=True))
    found = overlaps.add(keys(*columns[0]), times(*columns[1]), times(*columns[2]))
    return [] if found is None else np.flatnonzero(found).tolist()


def test_changes_one_after_the_other_are_sure() -> None:
    overlaps = Overlaps()
    assert doubts(overlaps, (1, 10, 11), (1, 12, 13), (2, 14, 15)) == []
    assert doubts(overlaps, (1, 20, 21), (2, 22, 23)) == []


def test_what_began_before_an_earlier_end_of_its_key_is_in_doubt() -> None:
    overlaps = Overlaps()
    assert doubts(overlaps, (1, 10, 20), (2, 11, 21), (1, 20, 22)) == [2]
    assert doubts(overlaps, (2, 21, 30), (1, 23, 31)) == [0]


@pytest.mark.parametrize("split", [False, True])
def test_a_call_that_did_many_puts_no_earlier_changes_in_doubt(split: bool) -> None:
    """All rows of a batch bear its times, so that each began before its neighbour's end."""
    singles = [
        (key, 100 * turn + 2 * key, 100 * turn + 2 * key + 1) for turn in (1, 2) for key in range(7)
    ]
    whole = [(key, 900, 910) for key in range(5)]
    overlaps = Overlaps()
    if split:
        assert doubts(overlaps, *singles) == []
        assert doubts(overlaps, *whole) == []
    else:
        assert doubts(overlaps, *singles, *whole) == []
    assert doubts(overlaps, (3, 905, 920), (6, 905, 921)) == [0]


def test_an_unknown_begin_is_in_doubt_behind_any_change_of_its_key() -> None:
    overlaps = Overlaps()
    assert doubts(overlaps, (1, 10, 11), (2, 12, 13)) == []
    assert doubts(overlaps, (1, 0, 30), (3, 0, 31)) == [0]


def test_the_parts_of_one_reading_put_no_other_part_in_doubt() -> None:
    """A map larger than what is remembered, read as a whole: each key is in it once."""
    overlaps = Overlaps()
    rows = 3 * ROWS_MAX
    begin, end = 1_000, 9_000
    for first in range(0, rows, 8_192):
        part = np.arange(first, first + 8_192)
        same = np.ones(len(part), np.uint64)
        assert overlaps.add(keys(*part), same * np.uint64(begin), same * np.uint64(end)) is None
    assert doubts(overlaps, (rows + 1, 9_001, 9_002)) == []
    assert doubts(overlaps, (0, 8_999, 9_003)) == [0], "the row that it overlaps was dropped"


def test_a_later_reading_is_in_doubt_of_what_was_dropped_of_an_earlier_one() -> None:
    overlaps = Overlaps()
    for begin, end in ((1_000, 9_000), (8_000, 9_500)):
        found = [
            overlaps.add(
                keys(*range(first, first + 8_192)),
                np.full(8_192, begin, np.uint64),
                np.full(8_192, end, np.uint64),
            )
            for first in range(0, 2 * ROWS_MAX, 8_192)
        ]
        doubtful = [mark for mark in found if mark is not None]
        assert bool(doubtful) == (begin == 8_000)
