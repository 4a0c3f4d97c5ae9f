"""Which of several maps of one name is taken."""

from __future__ import annotations

from bridge.config.settings import MapConfig
from bridge.kernel.errors import MapAmbiguousError
from bridge.kernel.maptypes import MapType
from bridge.model import MapInfo, MapSelector
from bridge.node.lookout import Sighting, View, admit, choose

QUEUE = MapInfo(11, "queue", MapType.QUEUE, 0, 4, 16)
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


def test_a_map_is_taken_once_and_a_name_given_once() -> None:
    view = View()
    view.add(MapConfig("ct", MapSelector(pin="/b/ct")), Sighting(OLD))
    for own_name, info in (
        ("ct", NEW),
        ("same", OLD),
        ("queue", QUEUE),
        ("new", NEW),
        ("a b", NEW),
    ):
        member = MapConfig(own_name, MapSelector(pin=f"/c/{own_name}"))
        admit(view, member, Sighting(info), {})
    assert set(view.maps) == {"ct", "new"}
    assert "pin /b/ct and pin /c/ct" in str(view.conflicts[0])
    assert len(view.conflicts) == 1
    assert [reason.split(":")[0] for reason in view.left_out] == [
        "pin /c/same",
        "pin /c/queue",
        "pin /c/a b",
    ]
