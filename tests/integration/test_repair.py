"""A ring that is far too small, and a burst: what was lost is counted, and mended."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bridge.bench.churn import LOSSES, MAP, OPERATIONS_MAX, RING, Writer, loaded_churn
from bridge.kernel.maps import create_map
from bridge.kernel.objects import default_cache
from bridge.model import Role
from bridge.rig.broker import ServerThread
from bridge.rig.claim import Claim
from bridge.rig.compare import compare
from bridge.rig.nodes import MapEntry, NodeProcess
from tests.node_kit import until

CHANGES = 1_107_019  # asked for: deletes of keys that are gone change nothing
KEYS = 49_999


@pytest.mark.parametrize("role", [Role.REPLICATE, Role.PUBLISH])
def test_a_replica_is_equal_after_a_burst_that_the_ring_could_not_hold(
    tmp_path: Path, role: Role
) -> None:
    with (
        Claim.take() as claim,
        ServerThread(tmp_path / "nats") as server,
    ):
        claim.pin_directory.mkdir(parents=True)
        defines = ["EMIT", "RING_BYTES=65536"]
        with loaded_churn(default_cache(), claim.pin_directory / "a", defines) as churn:
            source = churn.loaded.map(MAP)
            info = source.info
            replica = create_map(
                info.type, info.key_size, info.value_size, info.max_entries, name=info.name
            )
            (claim.pin_directory / "b").mkdir()
            pin = claim.pin_directory / "b" / MAP
            replica.pin(pin)
            emit = (churn.loaded.map_pin(RING), churn.loaded.map_pin(LOSSES))
            entry = MapEntry(MAP, churn.loaded.map_pin(MAP), role, emit)
            other = MapEntry(MAP, pin, Role.APPLY)
            with (
                NodeProcess("a", tmp_path, broker_url=server.url, maps=[entry]) as a,
                NodeProcess("b", tmp_path, broker_url=server.url, maps=[other]) as b,
            ):
                a.await_running()
                b.await_running()
                churn.set_writer(0, Writer(1, KEYS, OPERATIONS_MAX, 300))
                churn.run(0, CHANGES // OPERATIONS_MAX)
                ended = time.monotonic()
                until(lambda: compare(source, replica).equal, "the replica equals its source")
                seconds = time.monotonic() - ended
                capture = a.map_status()["capture"]
                assert isinstance(capture, dict)
                lost = int(capture["losses"]["ring_full"])
                until(lambda: repairs(a) > 0, "the repair is told")
            changes = churn.writer(0).changes
            print(f"{changes:,} changes, {lost:,} lost, equal after {seconds:.1f} s")
            assert lost > changes // 100, "nothing was lost, so nothing was shown"
            replica.close()


def repairs(node: NodeProcess) -> int:
    capture = node.map_status()["capture"]
    assert isinstance(capture, dict)
    return int(capture["repairs"]["finished"])
