"""Which maps there are, look by look."""

from __future__ import annotations

import pytest

from bridge.kernel.census import Census
from bridge.kernel.errors import MapClosedError
from bridge.kernel.features import Capability
from bridge.kernel.maps import (
    KernelMap,
    MapType,
    create_map,
    open_map_id,
    open_pin,
    still_held,
)
from tests.integration.kernel_support import needs, no_descriptor_leaks, pin_folder, unique_name

pytestmark = needs(Capability.CAP_SYS_ADMIN)


def test_maps_are_found_by_name_pin_folder_and_id() -> None:
    name = unique_name("census")
    with pin_folder() as pins, create_map(MapType.HASH, 4, 4, 7, name=name) as one:
        one.pin(pins / "one")
        one.pin(pins / "another")
        with no_descriptor_leaks():
            census = Census()
            census.look()
            assert [info.id for info in census.named(f"{name[:-1]}?")] == [one.info.id]
            assert census.named("no such name") == []
            assert census.with_id(one.info.id) == census.at_pin(str(pins / "one")) == one.info
            assert list(census.in_folder(str(pins), "*")) == ["another", "one"]
            assert census.in_folder(str(pins), "o*") == {"one": one.info}
            assert census.in_folder(f"{pins}/nothing", "*") == {}
            assert census.at_pin(f"{pins}/nothing") is None


def test_only_what_changed_is_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counted(path: str) -> KernelMap:
        opened.append(path)
        return open_pin(path)

    monkeypatch.setattr("bridge.kernel.census.open_pin", counted)
    with (
        pin_folder() as pins,
        create_map(MapType.HASH, 4, 4, 7) as old,
        create_map(MapType.HASH, 4, 4, 7) as new,
    ):
        pin = pins / "map"
        old.pin(pin)
        census = Census()
        for _ in range(3):
            census.look()
            assert census.at_pin(str(pin)) == old.info
        assert len(opened) == 1
        pin.unlink()
        new.pin(pin)
        for _ in range(3):
            census.look()
            assert census.in_folder(str(pins), "*") == {"map": new.info}
        assert len(opened) == 2
        pin.unlink()
        census.look()
        assert census.at_pin(str(pin)) is None


def test_a_map_that_nobody_else_has_is_gone_when_it_is_let_go() -> None:
    with (
        no_descriptor_leaks(),
        create_map(MapType.HASH, 4, 4, 7) as owner,
        open_map_id(owner.info.id) as ours,
    ):
        assert still_held(ours)
        ours.update(b"key1", b"val1")
        with open_map_id(owner.info.id) as again:
            owner.close()
            assert still_held(ours)
            assert again.lookup(b"key1") == b"val1"
        assert not still_held(ours)
        with pytest.raises(MapClosedError):
            ours.lookup(b"key1")
