"""Two processors write the same keys at once, seen by probes; the replica equals the source."""

from __future__ import annotations

import pytest

from tests.node_kit import Rig
from tests.order_kit import Hand, check_order

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3000)]


@pytest.mark.parametrize("rig", ["fentry", "kprobe"], indirect=True)
def test_a_replica_equals_what_two_processors_wrote(
    rig: Rig, request: pytest.FixtureRequest
) -> None:
    """Two programs first; then one of them beside a process that writes batches."""
    hands = ((Hand.PROGRAM, Hand.PROGRAM), (Hand.PROGRAM, Hand.BATCH))
    check_order(rig, request, hands, repetitions=3, rounds=10_007)
