"""Which bytes of a value count, by ranges and by names."""

from __future__ import annotations

import pytest

from bridge.config.settings import MapConfig
from bridge.kernel.maps import KernelMap
from bridge.layout.types import Field, Kind, Layout, Type
from bridge.model import MapInfo, MapSelector
from bridge.node import ignoring
from bridge.node.ignoring import IgnoreError, counted_bytes

NUMBER = Type(Kind.INT, 8, "u64")
INNER = Type(
    Kind.STRUCT, 16, "times", fields=(Field("first", 0, NUMBER), Field("last", 64, NUMBER))
)
VALUE = Type(
    Kind.STRUCT,
    32,
    "session",
    fields=(Field("state", 0, NUMBER), Field("times", 64, INNER), Field("flag", 192, NUMBER, 3)),
)


def counted(*ignore: str) -> list[int]:
    """Bytes that count."""
    entry = MapConfig("m", MapSelector(id=1), ignore=ignore)
    found = counted_bytes(entry, KernelMap(-1, MapInfo(1, "m", 1, 4, 32, 16)))
    assert found is not None
    assert set(found.tolist()) <= {0, 255}
    return [at for at, byte in enumerate(found) if byte]


@pytest.fixture
def layout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ignoring, "read_layout", lambda opened: Layout(NUMBER, VALUE))


def test_without_any_all_bytes_count() -> None:
    entry = MapConfig("m", MapSelector(id=1))
    assert counted_bytes(entry, KernelMap(-1, MapInfo(1, "m", 1, 4, 32, 16))) is None


@pytest.mark.usefixtures("layout")
def test_ranges_and_fields_are_left_out() -> None:
    assert counted("0:8", "30:32") == list(range(8, 30))
    assert counted("times.last") == [*range(16), *range(24, 32)]
    assert counted("state", "times") == list(range(24, 32))


@pytest.mark.usefixtures("layout")
@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("24:33", "values have 32 bytes"),
        ("0:32", "nothing of a value is left"),
        ("stat", "it has: state, times"),
        ("times.latest", "it has: first, last"),
        ("state.more", "it has: none"),
        ("flag", "no such field of whole bytes"),
    ],
)
def test_what_the_value_does_not_have_is_refused(part: str, reason: str) -> None:
    with pytest.raises(IgnoreError, match=reason):
        counted(part)
