"""A scan that is begun again."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from bridge.kernel import scan
from bridge.kernel.errors import KernelError, MapBusyError, MapClosedError
from bridge.kernel.scan import SCAN_TRIES_MAX, Entries, scan_whole

CHUNK = (np.zeros((3, 4), np.uint8), np.zeros((3, 8), np.uint8))


class Scans:
    """Breaks off behind its first chunk for as many times as it has errors."""

    def __init__(self, *errors: KernelError) -> None:
        self.errors = list(errors)
        self.begun = 0

    def __call__(self) -> Iterator[Entries]:
        self.begun += 1
        yield CHUNK
        if self.errors:
            raise self.errors.pop(0)
        yield CHUNK


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scan, "SCAN_PAUSE_SECONDS", 0.0)


def test_a_passing_reason_has_it_begun_again() -> None:
    scans = Scans(MapBusyError("busy"), MapBusyError("busy"))
    assert len(scan_whole(scans)) == 2
    assert scans.begun == 3


def test_other_reasons_and_too_many_tries_end_it() -> None:
    with pytest.raises(MapClosedError):
        scan_whole(Scans(MapClosedError("closed")))
    scans = Scans(*(MapBusyError("busy") for _ in range(99)))
    with pytest.raises(MapBusyError):
        scan_whole(scans)
    assert scans.begun == SCAN_TRIES_MAX
