"""Which of several maps of one name is taken."""

from __future__ import annotations

from bridge.kernel.errors import MapAmbiguousError
from bridge.model import MapInfo
from bridge.node.lookout import choose

OLD, NEW = MapInfo(7, "ct", 1, 4, 4, 16), MapInfo(9, "ct", 1, 4, 4, 16)


def test_the_only_one_is_taken() -> None:
    assert choose("ct", [], None).info is None
    assert choose("ct", [], 7).info is None
    assert choose("ct", [NEW], None).info == NEW
    assert choose("ct", [NEW], 7).info == NEW


def test_the_one_that_is_followed_stays() -> None:
    found = choose("ct", [OLD, NEW], 7)
    assert (found.info, found.newer) == (OLD, NEW)
    assert choose("ct", [OLD, NEW], 9).newer is None


def test_of_two_strangers_none_is_taken_and_both_are_named() -> None:
    found = choose("ct", [OLD, NEW], 3)
    assert found.info is None
    assert isinstance(found.error, MapAmbiguousError)
    assert "id 7" in str(found.error)
    assert "id 9" in str(found.error)
