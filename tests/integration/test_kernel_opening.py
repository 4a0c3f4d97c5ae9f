"""Finding, opening, making and closing kernel maps, and what is told when that fails."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from bridge.kernel import errors
from bridge.kernel.features import Capability
from bridge.kernel.maps import (
    BatchOutcome,
    MapType,
    all_maps,
    create_map,
    find_maps,
    open_map,
    open_map_id,
    open_pin,
)
from bridge.model import MapSelector
from tests.integration.kernel_support import (
    needs,
    no_descriptor_leaks,
    open_descriptors,
    pin_folder,
    unique_name,
)

pytestmark = needs(Capability.CAP_BPF, Capability.CAP_SYS_ADMIN)


@pytest.fixture(autouse=True)
def _no_leaks() -> Iterator[None]:
    with no_descriptor_leaks():
        yield


def test_open_by_id_name_and_pin() -> None:
    name = unique_name("find")
    with (
        create_map(MapType.HASH, 4, 4, 10, name=name) as made,
        pin_folder() as folder,
    ):
        made.pin(folder / "table")
        made.update(b"key.", b"val.")
        selectors = [
            MapSelector(id=made.info.id),
            MapSelector(name=name),
            MapSelector(name=f"{name}_and_what_loaders_cut_off"),
            MapSelector(pin=str(folder / "table")),
        ]
        for selector in selectors:
            with open_map(selector) as opened:
                assert opened.info == made.info
                assert opened.lookup(b"key.") == b"val."
        assert find_maps(name) == [made.info]
        with pytest.raises(errors.PathTakenError):
            made.pin(folder / "table")


def test_ambiguous_name_lists_the_candidates() -> None:
    name = unique_name("twin")
    with (
        create_map(MapType.HASH, 4, 8, 10, name=name) as one,
        create_map(MapType.ARRAY, 4, 16, 20, name=name) as two,
    ):
        with pytest.raises(errors.MapAmbiguousError) as caught:
            open_map(MapSelector(name=name))
        assert caught.value.candidates == (one.info, two.info)
        text = str(caught.value)
        assert f"id {one.info.id} name {name} hash key 4 value 8 max 10" in text
        assert f"id {two.info.id} name {name} array key 4 value 16 max 20" in text


def test_maps_that_are_not_there() -> None:
    with create_map(MapType.HASH, 4, 4, 10) as made:
        gone = made.info.id
        assert made.info.name == ""
    with pytest.raises(errors.MapNotFoundError, match="no map of this name"):
        open_map(MapSelector(name=unique_name("none")))
    with pytest.raises(errors.MapNotFoundError, match="nothing there"):
        open_pin("/sys/fs/bpf/not_there_at_all")
    with pytest.raises(errors.MapNotFoundError, match=r"map id 4294967280"):
        open_map_id(0xFFFFFFF0)
    assert gone not in [info.id for info in all_maps() if info.name == "odd"]


def test_listing_survives_maps_that_vanish() -> None:
    stop = threading.Event()
    made = 0

    def churn() -> None:
        nonlocal made
        while not stop.is_set():
            for opened in [create_map(MapType.HASH, 4, 4, 4, name="churn") for _ in range(8)]:
                opened.close()
                made += 1

    before = open_descriptors()
    with create_map(MapType.HASH, 4, 4, 10, name=unique_name("stay")) as stays:
        thread = threading.Thread(target=churn)
        thread.start()
        try:
            while made < 400:
                assert stays.info in all_maps()
        finally:
            stop.set()
            thread.join()
    assert open_descriptors() == before


def test_closing() -> None:
    opened = create_map(MapType.HASH, 4, 4, 10, name="closed")
    opened.close()
    opened.close()
    with pytest.raises(errors.MapClosedError, match="after close"):
        opened.lookup(bytes(4))
    with pytest.raises(errors.MapClosedError):
        opened.update_batch(np.zeros((1, 4), np.uint8), np.zeros((1, 4), np.uint8))
    with pytest.raises(errors.MapClosedError):
        list(opened.scan())


def test_frozen_map_refuses_writes() -> None:
    with create_map(MapType.HASH, 4, 4, 10, name="frozen") as frozen:
        frozen.update(bytes(4), b"1234")
        frozen.freeze()
        assert frozen.lookup(bytes(4)) == b"1234"
        with pytest.raises(errors.MapReadOnlyError, match="map frozen"):
            frozen.update(bytes(4), bytes(4))
        rows = np.zeros((3, 4), np.uint8)
        assert frozen.update_batch(rows, rows) == BatchOutcome(0, 1)
        assert frozen.delete_batch(rows) == BatchOutcome(0, 1)


def test_creation_is_refused_with_a_reason() -> None:
    with pytest.raises(errors.InvalidError, match="map bad: create"):
        create_map(MapType.ARRAY, 3, 4, 10, name="bad")
    with pytest.raises(errors.SizeMismatchError, match=r"at most 15 \(got 16\)"):
        create_map(MapType.HASH, 4, 4, 10, name="x" * 16)


def test_missing_capability_is_named() -> None:
    script = (
        "import os\n"
        "from bridge.kernel import errors\n"
        "from bridge.kernel.maps import all_maps\n"
        "os.setresgid(65534, 65534, 65534)\n"
        "os.setresuid(65534, 65534, 65534)\n"
        "try:\n"
        "    all_maps()\n"
        "except errors.KernelPrivilegeError as error:\n"
        "    print(int(error.exit_code), error, '/', error.hint)\n"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    assert ran.stdout.startswith("77 maps: list: missing CAP_SYS_ADMIN (got EPERM)")
