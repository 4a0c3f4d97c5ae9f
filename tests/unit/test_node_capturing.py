"""Which maps are compared beside their rings."""

from __future__ import annotations

import pytest

from bridge.config.settings import MapConfig
from bridge.kernel.maptypes import MapType
from bridge.model import MapInfo, MapSelector
from bridge.node.capturing import sweep_beside


@pytest.mark.parametrize(
    ("map_type", "asked", "seconds"),
    [
        (MapType.HASH, False, None),
        (MapType.HASH, True, 3.0),
        (MapType.ARRAY, False, 3.0),
        (MapType.ARRAY, True, 3.0),
    ],
)
def test_arrays_are_swept_unasked(map_type: MapType, asked: bool, seconds: float | None) -> None:
    entry = MapConfig("m", MapSelector(id=1), sweep_seconds=3.0, sweeps_too=asked)
    assert sweep_beside(entry, MapInfo(1, "m", map_type, 4, 8, 16)) == seconds
