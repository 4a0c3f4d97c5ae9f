"""Two processors write the same keys at once and are seen; the replica equals the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.kernel.features import Capability
from bridge.rig.broker import ServerThread
from tests.integration.kernel_support import needs, pin_folder
from tests.node_kit import Rig
from tests.order_kit import Hand, check_order

pytestmark = [needs(Capability.CAP_SYS_ADMIN), pytest.mark.timeout(600)]


@pytest.mark.parametrize("hand", Hand)
def test_a_replica_equals_what_two_processors_wrote(
    tmp_path: Path, request: pytest.FixtureRequest, hand: Hand
) -> None:
    """A program says what it does; of a process the probes on bpf(2) tell."""
    emit = hand is Hand.PROGRAM
    with pin_folder() as pins, ServerThread(tmp_path / "nats") as server:
        rig = Rig(tmp_path, pins, server, capture="sweep" if emit else "syscall")
        try:
            check_order(rig, request, [(hand, hand)], repetitions=3, rounds=100_003, emit=emit)
        finally:
            rig.close()
