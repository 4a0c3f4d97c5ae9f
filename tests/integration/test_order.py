"""Two processors write the same keys at once and say so; the replica equals the source."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.kernel.features import Capability
from bridge.rig.broker import ServerThread
from tests.integration.kernel_support import needs, pin_folder
from tests.node_kit import Rig
from tests.order_kit import check_order

pytestmark = [needs(Capability.CAP_SYS_ADMIN), pytest.mark.timeout(600)]


def test_a_replica_equals_what_two_processors_emitted(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    with pin_folder() as pins, ServerThread(tmp_path / "nats") as server:
        rig = Rig(tmp_path, pins, server)
        try:
            check_order(rig, request, repetitions=3, rounds=100_003, emit=True)
        finally:
            rig.close()
