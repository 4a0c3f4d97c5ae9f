"""Two processors write the same keys at once, seen by probes; the replica equals the source."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.rig.broker import ServerThread
from tests.integration.kernel_support import pin_folder
from tests.node_kit import Rig
from tests.order_kit import Hand, check_order

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3000)]


@pytest.fixture
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with pin_folder() as pins, ServerThread(tmp_path / "nats") as server:
        made = Rig(tmp_path, pins, server, capture=request.param)
        try:
            yield made
        finally:
            made.close()


@pytest.mark.parametrize("rig", ["fentry", "kprobe"], indirect=True)
def test_a_replica_equals_what_two_processors_wrote(
    rig: Rig, request: pytest.FixtureRequest
) -> None:
    """Two programs first; then one of them beside a process that writes batches."""
    hands = ((Hand.PROGRAM, Hand.PROGRAM), (Hand.PROGRAM, Hand.BATCH))
    check_order(rig, request, hands, repetitions=3, rounds=10_007)
